"""A WordPiece vocabulary learnt from texts, as a tokenizer directory. Out of scope: using it (`tokenizer`)."""

from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from tqdm import tqdm

from ltrec_jax import storage
from ltrec_jax.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(texts: Callable[[], Iterable[str]], directory: Path, *, size: int, max_length: int) -> int:
    """Learn about `size` lower-case word pieces (BERT's normaliser and splitting) and write them into a directory.

    `texts()` gives all texts, twice. Written: `tokenizer.json`, `vocab.txt`, `tokenizer_config.json`, as
    `load_tokenizer` and transformers read them; the same texts give the same bytes. Returns the number of pieces,
    special tokens included: fewer than `size` where the texts have no more, more where their characters alone are.
    Texts without a single character are a `UserError`.
    """
    learner = _engine(tokenizers.models.WordPiece(unk_token="[UNK]"))
    # The trainer numbers the pieces "##x" in the order of a hash table, and breaks ties by number: every run would
    # learn other pieces. Named beforehand they keep their order.
    letters = [f"##{letter}" for letter in _continuing_letters(learner, texts())]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *letters], show_progress=False, continuing_subword_prefix="##"
    )
    learner.train_from_iterator(texts(), trainer)
    learnt = learner.get_vocab()
    if len(learnt) == len(SPECIAL):
        raise UserError("The texts are empty: there is no vocabulary to learn from them.")
    engine = _engine(tokenizers.models.WordPiece(learnt, unk_token="[UNK]"))
    engine.add_special_tokens(list(SPECIAL))
    engine.decoder = tokenizers.decoders.WordPiece()
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, learnt[name]) for name in ("[CLS]", "[SEP]")],
    )
    directory.mkdir(parents=True, exist_ok=True)
    storage.write_text(directory / "tokenizer.json", engine.to_str(pretty=True))
    storage.write_text(directory / "vocab.txt", "\n".join(sorted(learnt, key=learnt.__getitem__)) + "\n")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    storage.write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": max_length, **names},
    )
    return len(learnt)


def _engine(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return engine


def _continuing_letters(engine: tokenizers.Tokenizer, texts: Iterable[str]) -> list[str]:
    """The characters that stand after the first one of a word, sorted."""
    found: set[str] = set()
    for text in tqdm(texts, "read letters", unit=" texts", delay=1.0):
        for word, _ in engine.pre_tokenizer.pre_tokenize_str(engine.normalizer.normalize_str(text)):
            found.update(word[1:])
    return sorted(found)
