"""A WordPiece vocabulary learnt from texts, as a tokenizer directory. Out of scope: using it (`tokenizer`)."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers

from ltrec_jax import storage
from ltrec_jax.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(texts: Iterable[str], directory: Path, *, size: int, max_length: int) -> int:
    """Learn at most `size` lower-case word pieces (BERT's normaliser and splitting) and write them into a directory.

    Written: `tokenizer.json`, `vocab.txt`, `tokenizer_config.json`, as `load_tokenizer` and transformers read them.
    Returns the number of pieces, special tokens included: fewer than `size` where the texts have no more. Texts
    without a single character are a `UserError`.
    """
    engine = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    engine.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False, continuing_subword_prefix="##"
    )
    engine.train_from_iterator(texts, trainer)
    count = engine.get_vocab_size()
    if count == len(SPECIAL):
        raise UserError("The texts are empty: there is no vocabulary to learn from them.")
    ends = [(name, engine.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    directory.mkdir(parents=True, exist_ok=True)
    storage.write_text(directory / "tokenizer.json", engine.to_str(pretty=True))
    pieces = sorted(engine.get_vocab(), key=engine.get_vocab().__getitem__)
    storage.write_text(directory / "vocab.txt", "\n".join(pieces) + "\n")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    storage.write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": max_length, **names},
    )
    return count
