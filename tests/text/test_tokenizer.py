import itertools
import json
import re
import shutil

import numpy as np
import pytest
import tokenizers

from ltrec_jax.errors import UserError
from ltrec_jax.text import tokenizer_workers
from ltrec_jax.text.masking import maskable
from ltrec_jax.text.tokenizer import load_tokenizer
from ltrec_jax.text.vocabulary import train_wordpiece


def test_special_tokens_stand_around_a_text(tiny_encoder):
    tokenizer = load_tokenizer(tiny_encoder, 22)
    values, offsets, cut = tokenizer.encode(["the rocket", "", "barn and xyz"], 16)
    the, rocket, barn, conj = (tokenizer.token_id(w) for w in ("the", "rocket", "barn", "and"))
    assert values.tolist() == [2, the, rocket, 3, 2, 3, 2, barn, conj, 1, 3]
    assert offsets.tolist() == [0, 4, 6, 11]
    assert (values.dtype, offsets.dtype, cut) == (np.int32, np.int64, 0)


def test_long_texts_are_cut_and_counted(tiny_encoder):
    tokenizer = load_tokenizer(tiny_encoder, 22)
    values, offsets, cut = tokenizer.encode(["the rocket", "the rocket and the planet and the comet"], 5)
    assert cut == 1
    assert np.diff(offsets).tolist() == [4, 5]
    assert values[-1] == 3


@pytest.mark.parametrize("rows", [30522, 44, 21])
def test_a_foreign_vocabulary_is_named(tiny_encoder, rows):
    with pytest.raises(UserError, match=rf"22 tokens \(the last is 21\), the encoder's vocab_size is {rows}"):
        load_tokenizer(tiny_encoder, rows)


def test_a_vocabulary_of_another_checkpoint_of_about_its_size_is_no_padding(minilm_directory):
    assert load_tokenizer(minilm_directory, 30522 + 70).vocab_size == 30592
    with pytest.raises(UserError, match="do not belong together"):
        load_tokenizer(minilm_directory, 30522 + 1526)  # as far as the cased BERT is from the uncased one


def test_rows_beyond_the_tokens_are_padding_and_change_no_id(tiny_encoder):
    exact, padded = load_tokenizer(tiny_encoder, 22), load_tokenizer(tiny_encoder, 30)
    assert (exact.vocab_size, padded.vocab_size) == (22, 30)
    assert exact.fingerprint == padded.fingerprint
    np.testing.assert_array_equal(exact.encode(["the rocket"], 8)[0], padded.encode(["the rocket"], 8)[0])


def test_a_token_without_a_row_is_refused_however_few_tokens_there_are(tiny_encoder, tmp_path):
    raw = json.loads((tiny_encoder / "tokenizer.json").read_text())
    raw["model"]["vocab"]["lunar"] = 25
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert load_tokenizer(tmp_path, 26).token_id("lunar") == 25
    with pytest.raises(UserError, match=r"22 tokens \(the last is 25\), the encoder's vocab_size is 25"):
        load_tokenizer(tmp_path, 25)


def test_what_transformers_makes_of_a_directory_without_vocabulary_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 100}))
    with pytest.raises(UserError, match="knows 5 tokens"):
        load_tokenizer(tmp_path, 100)


def test_a_damaged_or_absent_tokenizer_is_named(tiny_encoder, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path, 22)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path, 22)


TEXTS = [
    "the rocket and the planet",
    "harvest in the barn; the cattle",
    "lunar heist, lunar alibi",
    "déjà vu 🚀 rocket",
]


def byte_pairs(directory):
    """A byte-level BPE as RoBERTa's, learnt from TEXTS, in old and new checkpoints' files. Number of its tokens."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        TEXTS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=letters, show_progress=False
        ),
    )
    engine.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    engine.save(str(directory / "tokenizer.json"))
    engine.model.save(str(directory))
    return engine.get_vocab_size()


def unigrams(directory):
    """A Unigram model with SentencePiece's sign for a space, as XLM-R's: tokenizer.json. Number of its tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    engine = tokenizers.Tokenizer(tokenizers.models.Unigram())
    engine.normalizer = tokenizers.normalizers.NFKC()
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    engine.decoder = tokenizers.decoders.Metaspace()
    engine.train_from_iterator(
        TEXTS,
        tokenizers.trainers.UnigramTrainer(
            vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    engine.add_special_tokens(["<mask>"])
    engine.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    engine.save(str(directory / "tokenizer.json"))
    return engine.get_vocab_size()


@pytest.mark.parametrize("learn", [byte_pairs, unigrams])
def test_other_families_tokenizers_stand_around_a_text_lose_nothing_and_begin_words_with_a_space(tmp_path, learn):
    tokenizer = load_tokenizer(tmp_path, learn(tmp_path) + 3)
    values, offsets, cut = tokenizer.encode([*TEXTS, ""], 64)
    rows = [values[a:b] for a, b in itertools.pairwise(offsets)]
    assert cut == 0
    assert rows[-1].tolist() == [0, 2]
    vocabulary = maskable(tokenizer)
    assert vocabulary.mask_id == tokenizer.token_id("<mask>")
    assert not vocabulary.special_V[: tokenizer.vocab_size - 3].all()
    assert vocabulary.special_V[-3:].all()
    for text, row in zip(TEXTS, rows, strict=False):
        assert (row[0], row[-1]) == (0, 2)
        assert 3 not in row
        assert tokenizer.engine.decode(row.tolist()) == text
        # As many tokens begin a word as there are words; the first one begins the text.
        begins = ~vocabulary.continues_V[row[1:-1]]
        begins[0] = True
        assert begins.sum() == len(text.split())
    short, _, cut = tokenizer.encode(TEXTS[:1], 5)
    assert (len(short), short[0], short[-1], cut) == (5, 0, 2, 1)


@pytest.mark.parametrize(("kind", "model_type"), [("wordpiece", "bert"), ("bpe", "roberta")])
def test_files_of_old_checkpoints_are_converted_to_the_same_tokenizer(tmp_path, kind, model_type):
    """`vocab.txt`, or `vocab.json` and `merges.txt`, without a tokenizer.json: transformers makes one."""
    if kind == "bpe":
        count = byte_pairs(tmp_path)
    else:
        count = train_wordpiece(lambda: TEXTS, tmp_path, size=80, max_length=32)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": count}))
    values, offsets, _ = load_tokenizer(tmp_path, count).encode([*TEXTS, "Heist, unheard of"], 32)
    (tmp_path / "tokenizer.json").unlink()
    converted = load_tokenizer(tmp_path, count)
    again = converted.encode([*TEXTS, "Heist, unheard of"], 32)
    np.testing.assert_array_equal(again[0], values)
    np.testing.assert_array_equal(again[1], offsets)
    assert maskable(converted).mask_id == converted.token_id("<mask>" if kind == "bpe" else "[MASK]")


def test_a_tokenizer_that_runs_in_python_alone_is_refused_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 6}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(UserError, match=r"BertJapaneseTokenizer\) runs in Python alone"):
        load_tokenizer(tmp_path, 6)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"tokenizer_class": "NoSuchTokenizer"}'),
        ("tokenizer_config.json", '{"tokenizer_class": 7}'),
        ("tokenizer_config.json", "{"),
        ("sentencepiece.bpe.model", "no model"),
    ],
)
def test_whatever_transformers_stumbles_over_is_one_line(tmp_path, name, content):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta", "vocab_size": 60}))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))) as caught:
        load_tokenizer(tmp_path, 60)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_changes_with_the_vocabulary(tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "t")
    raw = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    vocabulary["rocket"], vocabulary["barn"] = vocabulary["barn"], vocabulary["rocket"]
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(raw))
    assert load_tokenizer(tmp_path / "t", 22).fingerprint != load_tokenizer(tiny_encoder, 22).fingerprint
    assert load_tokenizer(tiny_encoder, 22).fingerprint == load_tokenizer(tiny_encoder, 22).fingerprint


def test_real_minilm_splits_words_as_transformers_does(minilm_directory):
    from transformers import AutoTokenizer

    texts = ["Toy Story (1995). Animation", "Amélie, 2001", "千与千寻", "naïve café — déjà vu 🚀", ""]
    theirs = AutoTokenizer.from_pretrained(minilm_directory)(texts)["input_ids"]
    values, offsets, _ = load_tokenizer(minilm_directory, 30522).encode(texts, 256)
    assert [values[a:b].tolist() for a, b in itertools.pairwise(offsets)] == theirs


@pytest.mark.parametrize("chunk", [1, 3000, 9000])
def test_chunks_give_what_one_call_gives_in_their_order_whoever_tokenises(tiny_encoder, chunk):
    words = ["the", "rocket", "barn", "and", "xyz", "é", "电影", '"\n', ""]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(0, 9))) for _ in range(20 if chunk == 1 else 20_000)]
    tokenizer = load_tokenizer(tiny_encoder, 22)
    parts = list(tokenizer.encode_chunks((texts[n : n + chunk] for n in range(0, len(texts), chunk)), 6))
    values, offsets, cut = tokenizer.encode(texts, 6)
    assert len(parts) == -(-len(texts) // chunk)
    assert np.array_equal(np.concatenate([part[0] for part in parts]), values)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), np.diff(offsets))
    assert sum(part[2] for part in parts) == cut


def test_no_chunks_give_no_parts(tiny_encoder):
    assert list(load_tokenizer(tiny_encoder, 22).encode_chunks([], 6)) == []


def test_a_failure_in_a_worker_is_told(tiny_encoder):
    engine = load_tokenizer(tiny_encoder, 22).engine
    with tokenizer_workers.Workers(engine, 1) as workers, pytest.raises(RuntimeError, match="ended with code 1"):
        workers.submit([7]).result()  # not a text


def test_lengths_asked_for_in_turn_do_not_mix(tiny_encoder):
    tokenizer, text = load_tokenizer(tiny_encoder, 22), ["the rocket and the planet and the comet"]
    whole, _, _ = tokenizer.encode(text, 16)
    short, _, cut = tokenizer.encode(text, 5)
    assert (len(whole), len(short), cut) == (10, 5, 1)
    np.testing.assert_array_equal(tokenizer.encode(text, 16)[0], whole)
