"""Vectors on disk: what the encoder computes in memory, whatever was killed, damaged or repeated on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ltrec_jax import parallel, storage
from ltrec_jax.encoder import calls, int8, shards
from ltrec_jax.encoder.catalogue import encode_catalogue
from ltrec_jax.encoder.shards import encode_to_disk, open_encoded
from ltrec_jax.encoder.weights import Encoder, load_encoder
from ltrec_jax.errors import UserError
from ltrec_jax.text import corpus
from ltrec_jax.text.store import build_store
from ltrec_jax.text.tokenizer import load_tokenizer

WORDS = ["the", "and", "rocket", "planet", "orbit", "comet", "tractor", "barn", "cattle", "harvest", "heist", "alibi"]
ONE_DEVICE = parallel.choose("jit")


def drawn_texts(count: int) -> list[str]:
    """Texts of 1 to 12 words, every tenth of them one that came before."""
    generator = np.random.default_rng(3)
    texts = [" ".join(generator.choice(WORDS, size)) for size in generator.integers(1, 13, count)]
    return [texts[number // 10] if number % 10 == 9 else text for number, text in enumerate(texts)]


TEXTS = drawn_texts(200)


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return load_encoder(tiny_encoder)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are written, in order."""
    names: list[str] = []
    write = storage.write_array

    def noted(path: Path, array: np.ndarray) -> None:
        names.append(path.name)
        write(path, array)

    monkeypatch.setattr(storage, "write_array", noted)
    return names


def encode(encoder: Encoder, out: Path, texts: Any = TEXTS, **more: Any) -> shards.Encoded:
    settings: dict[str, Any] = {"policy": "float32", "shard_tokens": 256, "spread": ONE_DEVICE}
    return encode_to_disk(encoder, texts, out, **settings | more)


def in_memory(encoder: Encoder, texts: list[str], length: int | None = None) -> np.ndarray:
    tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
    return encode_catalogue(encoder, build_store(texts, tokenizer, length or encoder.max_length), progress=False)


def test_equals_encoding_in_memory(encoder: Encoder, tmp_path: Path, written: list[str]) -> None:
    made = encode(encoder, tmp_path / "out")
    assert len(written) > 3
    np.testing.assert_allclose(made.vectors, in_memory(encoder, TEXTS), rtol=1e-5, atol=1e-5)
    assert isinstance(made.vectors, np.memmap)
    assert made.ids == [str(number) for number in range(200)]
    assert pq.read_table(made.path / "ids.parquet")["row"].to_pylist() == list(range(200))
    assert sorted(entry.name for entry in made.path.iterdir()) == ["encode.json", "ids.parquet", "vectors.npy"]
    distinct = len(set(TEXTS))
    assert made.texts == made.info["finished"]["distinct"] == distinct < 200
    assert open_encoded(made.path).info == made.info


def test_all_devices_give_the_same(encoder: Encoder, tmp_path: Path) -> None:
    one = encode(encoder, tmp_path / "one")
    eight = encode(encoder, tmp_path / "eight", spread=parallel.choose("pmap"))
    np.testing.assert_allclose(eight.vectors, one.vectors, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        encode(encoder, tmp_path / "map", spread=parallel.choose("shard_map", count=3)).vectors,
        one.vectors,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_stored_in_fewer_bits(encoder: Encoder, tmp_path: Path, dtype: Any, error: float) -> None:
    full, half = encode(encoder, tmp_path / "full"), encode(encoder, tmp_path / "half", dtype=dtype)
    assert half.vectors.dtype.name == dtype
    np.testing.assert_allclose(half.vectors.astype(np.float32), full.vectors, rtol=error, atol=1e-6)
    assert (half.path / "vectors.npy").stat().st_size < 0.6 * (full.path / "vectors.npy").stat().st_size


def test_a_finished_directory_is_not_made_again(encoder: Encoder, tmp_path: Path, written: list[str]) -> None:
    encode(encoder, tmp_path / "out")
    del written[:]
    again = encode(encoder, tmp_path / "out")
    assert (again.texts, written) == (0, [])


def test_a_damaged_result_is_made_again(encoder: Encoder, tmp_path: Path) -> None:
    made = encode(encoder, tmp_path / "out")
    expected = np.array(made.vectors)
    path = made.path / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-8])
    np.testing.assert_array_equal(encode(encoder, tmp_path / "out").vectors, expected)


def stopped_after(count: int, encoder: Encoder, out: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Run until so many shards are written, then fail as a full disk would."""
    write, left = storage.write_array, iter(range(count))

    def failing(path: Path, array: np.ndarray) -> None:
        if next(left, None) is None:
            raise UserError("the disk is full")
        write(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_array", failing)
        with pytest.raises(UserError, match="the disk is full"):
            encode(encoder, out, **settings)


@pytest.fixture
def whole(encoder: Encoder, tmp_path: Path, written: list[str]) -> tuple[np.ndarray, list[str]]:
    """The vectors of a run that nothing stopped and the names of its shards, which `written` no longer holds."""
    vectors = np.array(encode(encoder, tmp_path / "whole").vectors)
    names = list(written)
    del written[:]
    return vectors, names


def test_good_shards_are_kept_and_bad_ones_made_again(
    encoder: Encoder,
    tmp_path: Path,
    written: list[str],
    whole: tuple[np.ndarray, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, every = whole
    stopped_after(4, encoder, tmp_path / "out", monkeypatch)
    with pytest.raises(UserError, match="is not finished: run the same `ltrec encode` again"):
        open_encoded(tmp_path / "out")
    (tmp_path / "out" / "shards" / every[1]).write_bytes(b"damaged")
    (tmp_path / "out" / "shards" / every[2]).unlink()
    del written[:]
    made = encode(encoder, tmp_path / "out")
    assert written == [every[1], every[2], *every[4:]]
    assert 0 < made.texts < len(set(TEXTS))
    np.testing.assert_array_equal(made.vectors, expected)


def test_a_run_goes_on_on_a_device_of_another_default(
    encoder: Encoder,
    tmp_path: Path,
    written: list[str],
    whole: tuple[np.ndarray, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, every = whole
    stopped_after(4, encoder, tmp_path / "out", monkeypatch)
    monkeypatch.setattr(calls, "default_tokens_per_call", lambda policy, row_length: 64)
    # Which texts a shard holds goes by them: those it was cut by are kept to.
    monkeypatch.setattr(calls, "row_lengths", lambda lengths: (6, 8, 48))
    del written[:]
    made = encode(encoder, tmp_path / "out")
    assert written == every[4:]
    np.testing.assert_allclose(made.vectors, expected, rtol=1e-5, atol=1e-5)


def test_shards_of_unknown_rows_are_made_again(
    encoder: Encoder,
    tmp_path: Path,
    written: list[str],
    whole: tuple[np.ndarray, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, every = whole
    stopped_after(4, encoder, tmp_path / "out", monkeypatch)
    manifest = storage.read_json(tmp_path / "out" / "encode.json")
    storage.write_json(tmp_path / "out" / "encode.json", {k: v for k, v in manifest.items() if k != "rows"})
    del written[:]
    np.testing.assert_array_equal(encode(encoder, tmp_path / "out").vectors, expected)
    assert written == every


def test_int8_is_not_mixed_with_that_of_another_processor(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stopped_after(2, encoder, out, monkeypatch, policy="int8")
    with monkeypatch.context() as patch:
        patch.setattr(int8, "describe", lambda: "no products, no inputs")
        with pytest.raises(UserError, match=r"rounds int8 otherwise .*no products, no inputs"):
            encode(encoder, out, policy="int8")
    made = encode(encoder, out, policy="int8")
    assert 0 < made.texts < len(set(TEXTS))
    # What is finished is what it is.
    monkeypatch.setattr(int8, "describe", lambda: "no products, no inputs")
    assert encode(encoder, out, policy="int8").texts == 0


def test_a_size_of_calls_that_was_asked_for_is_kept_to(encoder: Encoder, tmp_path: Path) -> None:
    encode(encoder, tmp_path / "out", tokens_per_call=96)
    with pytest.raises(UserError, match="tokens per call 96 there, 128 here"):
        encode(encoder, tmp_path / "out", tokens_per_call=128)
    assert encode(encoder, tmp_path / "out").texts == 0
    encode(encoder, tmp_path / "other")
    with pytest.raises(UserError, match="tokens per call by default there, 128 here"):
        encode(encoder, tmp_path / "other", tokens_per_call=128)


def test_a_kill_before_the_first_manifest_leaves_a_place_to_encode_into(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        # Killed, it does not clean up: what `new_file` had written stays.
        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            encode(encoder, out)
    assert [entry.name for entry in out.iterdir() if ".tmp-" in entry.name]
    assert not (out / "encode.json").exists()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else"):
        encode(encoder, out)
    (out / "letter.txt").unlink()
    made = encode(encoder, out)
    assert sorted(entry.name for entry in made.path.iterdir()) == ["encode.json", "ids.parquet", "vectors.npy"]


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_kill_while_replacing_leaves_something_to_replace(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(encoder, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(shards.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            encode(encoder, tmp_path / "out", policy="int8", replace=True)
    assert not (tmp_path / "out" / "vectors.npy").exists()
    assert encode(encoder, tmp_path / "out", policy="int8", replace=True).texts > 0


def test_damaged_tokens_are_made_again(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.array(encode(encoder, tmp_path / "whole").vectors)
    stopped_after(2, encoder, tmp_path / "out", monkeypatch)
    (tmp_path / "out" / "tokens" / "values.npy").write_bytes(b"damaged")
    np.testing.assert_array_equal(encode(encoder, tmp_path / "out").vectors, expected)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"policy": "int8"}, "precision float32 there, int8 here"),
        ({"max_length": 8}, "max length 32 there, 8 here"),
        ({"texts": TEXTS[:-1]}, r"\(texts\)"),
    ],
)
def test_other_settings_need_another_place(encoder: Encoder, tmp_path: Path, other: dict[str, Any], named: str) -> None:
    encode(encoder, tmp_path / "out", TEXTS)
    with pytest.raises(UserError, match=named):
        encode(encoder, tmp_path / "out", **{"texts": TEXTS} | other)
    made = encode(encoder, tmp_path / "out", **{"texts": TEXTS} | other, replace=True)
    assert made.texts > 0


def test_a_directory_with_something_else_is_left_alone(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for replace in (False, True):
        with pytest.raises(UserError, match="holds something else"):
            encode(encoder, tmp_path, replace=replace)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    with pytest.raises(UserError, match="is a file"):
        encode(encoder, tmp_path / "letter.txt")


def test_cut_texts_are_counted(encoder: Encoder, tmp_path: Path) -> None:
    made = encode(encoder, tmp_path / "out", max_length=6)
    assert made.info["finished"]["truncated"] == sum(len(text.split()) > 4 for text in TEXTS)
    np.testing.assert_allclose(made.vectors, in_memory(encoder, TEXTS, 6), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="reads 3 to 32"):
        encode(encoder, tmp_path / "other", max_length=33)


def test_a_prefix_goes_before_every_text(encoder: Encoder, tmp_path: Path) -> None:
    made = encode(encoder, tmp_path / "out", corpus.from_texts(TEXTS).with_prefix("detective "))
    np.testing.assert_allclose(
        made.vectors, in_memory(encoder, [f"detective {text}" for text in TEXTS]), rtol=1e-5, atol=1e-5
    )


def test_no_texts_at_all(encoder: Encoder, tmp_path: Path) -> None:
    made = encode(encoder, tmp_path / "out", [])
    assert made.vectors.shape == (0, 16)
    assert made.ids == []


def test_one_text_a_thousand_times(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_ROWS_AT_ONCE", 64)
    made = encode(encoder, tmp_path / "out", ["barn", *["comet orbit"] * 1000, "barn"])
    assert made.texts == 2
    assert (made.vectors[1:-1] == made.vectors[1]).all()
    assert (made.vectors[0] == made.vectors[-1]).all()
    assert not (made.vectors[0] == made.vectors[1]).all()


KILLED = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 8)
sys.path.insert(0, sys.argv[1])
import test_shards
from ltrec_jax import parallel
from ltrec_jax.encoder.weights import load_encoder
test_shards.encode(load_encoder(sys.argv[2]), Path(sys.argv[3]), test_shards.drawn_texts(4_000))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(
    encoder: Encoder, tiny_encoder: Path, tmp_path: Path, written: list[str]
) -> None:
    texts, out = drawn_texts(4_000), tmp_path / "killed"
    expected = np.array(encode(encoder, tmp_path / "whole", texts).vectors)
    every = list(written)
    arguments = [str(Path(__file__).parent), str(tiny_encoder), str(out)]
    running = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], env=dict(os.environ))
    try:
        deadline = time.monotonic() + 60
        while len(list((out / "shards").glob("0*.npy"))) < 3:
            assert running.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    recorded = list(storage.read_json(out / "encode.json")["shards"])
    kept = {name: (out / "shards" / name).stat().st_mtime_ns for name in recorded}
    assert 0 < len(recorded) < len(every)
    del written[:]
    made = encode(encoder, out, texts)
    assert kept.keys().isdisjoint(written)
    assert [*recorded, *written] == every
    np.testing.assert_array_equal(made.vectors, expected)
