"""Encoding beside PyTorch's BertModel: the same weights and tokens, vectors compared first, then texts per second.

    python benchmarks/bench_encode.py --json benchmarks/results/bench_encode.json

Real texts of uneven length (film titles with genres; the same joined to 100-200 words, whole) against PyTorch padded
to each batch's longest text and against PyTorch with batches of sorted length; one padded batch of 64 x 32 tokens on
both sides; int8 against PyTorch's bfloat16. Beside them, outside the headline, long texts cut where `ltrec encode`
cuts them for this encoder (256 tokens): two thirds then have one length, and there is little padding to save. Two
threads on both sides, each measurement in a process of its own, the sides in turns. PyTorch's batch size, and
autocast or bfloat16 weights, are whichever is faster. Tokenizing is the same on both sides and not measured, nor is
PyTorch's sorting and padding; our packing is. On a GPU there are more long texts and larger batches, all the host's
threads, and ours also with cuDNN's attention: the faster one counts. `ceilings` are the ratios of a program that did
nothing but the encoder's products, of the texts' own tokens, at the measured peak.
"""

import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import GIB, arguments, in_child, median_seconds, peak_gib, ran_task, report

RIVAL = Path(__file__).with_name("torch_reference.py")
ENCODER = "all-MiniLM-L6-v2"
THREADS = 2
BATCH = (64, 32)
TEXTS = ("titles", "long", "cut")
# What the headline is about: texts of uneven length.
UNEVEN = ("titles", "long")
# Between the sides, per text: float32 is the same arithmetic, bfloat16 rounds in other places.
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.999, "int8": 0.97}
RIVAL_NUMBERS = {"float32": ("float32",), "bfloat16": ("autocast", "bfloat16")}
POLICIES = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What suits a platform. `rounds`: processes of each measurement; `passes` over a set of texts in each of them.

    `processes`: what one process measures. `int8`: what is measured in int8, which compiles slowly on a GPU. `rivals`:
    what PyTorch may take for each of our precisions.
    """

    long_texts: int
    cut_texts: int
    rounds: int
    passes: int
    batches: tuple[int, ...]
    kernels: tuple[tuple[str, str], ...]
    processes: tuple[tuple[str, ...], ...]
    int8: tuple[str, ...]
    rivals: dict[str, tuple[str, ...]]


_EACH = tuple((policy, "xla") for policy in POLICIES)
ALL = (*TEXTS, "batch")
CPU = Sizes(768, 192, 3, 1, (32, 64), _EACH, (("titles",), ("long",), ("cut",), ("batch",)), ALL, RIVAL_NUMBERS)
# There, weights in bfloat16 are always faster than autocast, and to start and compile takes longer than to measure.
GPU = Sizes(
    2048,
    2048,
    1,
    9,
    (64, 256, 1024),
    (("bfloat16", "xla"), ("bfloat16", "cudnn"), ("int8", "xla"), ("float32", "xla")),
    (ALL,),
    ("titles", "batch"),
    RIVAL_NUMBERS | {"bfloat16": ("bfloat16",)},
)


def write_texts(folder: Path, name: str, quick: bool, sizes: Sizes) -> dict[str, Any]:
    """Token ids of all sets of texts and of the padded batch, for both sides; how long the texts are."""
    from ltrec_jax.data import sources
    from ltrec_jax.encoder.weights import load_encoder
    from ltrec_jax.text import corpus
    from ltrec_jax.text.store import build_store
    from ltrec_jax.text.tokenizer import load_tokenizer

    encoder = load_encoder(name)
    tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
    titles = [text for _, texts in corpus.of(sources.load("movielens-1m")).chunks() for text in texts]
    rng = np.random.default_rng(0)
    joined: list[str] = []
    for _ in range(sizes.long_texts):
        words: list[str] = []
        wanted = int(rng.integers(100, 201))
        while len(words) < wanted:
            words += titles[int(rng.integers(len(titles)))].split()
        joined.append(" ".join(words[:wanted]))
    about: dict[str, Any] = {}
    whole = encoder.config.max_positions
    for name, texts, most in (
        ("titles", titles[:256] if quick else titles, whole),
        ("long", joined, whole),
        ("cut", joined[: sizes.cut_texts], encoder.max_length),
    ):
        store = build_store(texts, tokenizer, most)
        (folder / name).mkdir()
        np.save(folder / name / "values.npy", store.values)
        np.save(folder / name / "offsets.npy", store.offsets)
        lengths = store.lengths
        about[name] = {
            "texts": len(store),
            "flops": _flops(encoder.config, lengths),
            "tokens": int(lengths.sum()),
            "percentiles_10_50_90": np.percentile(lengths, [10, 50, 90]).tolist(),
            "truncated": store.truncated,
        }
    (folder / "batch").mkdir()
    np.save(folder / "batch" / "ids.npy", rng.integers(1000, encoder.config.vocab_size, BATCH).astype(np.int32))
    return about | {"encoder": str(encoder.directory)}


def ours_task(
    encoder: str, folder: str, kinds: list[str], policy: Any, kernel: Any, passes: int, batches: int
) -> dict[str, Any]:
    """Our side: sets of texts as `ltrec encode` encodes them, packing included, and the padded batch.

    The encoder is loaded and placed outside of the time; what the first pass takes longer is compiling.
    """
    from ltrec_jax.encoder.calls import row_lengths
    from ltrec_jax.encoder.catalogue import make_runner
    from ltrec_jax.encoder.weights import load_encoder
    from ltrec_jax.text.store import TokenStore

    loaded, found = load_encoder(encoder).with_attention(kernel), {}
    for kind in kinds:
        place, of_batch = Path(folder) / kind, kind == "batch"
        if of_batch:
            ids = np.load(place / "ids.npy")
            tokens = TokenStore(ids.reshape(-1), np.arange(len(ids) + 1) * ids.shape[1])
        else:
            tokens = TokenStore(np.load(place / "values.npy"), np.load(place / "offsets.npy"))
        # Rows of the batch's own length, so that nothing is packed.
        runner = make_runner(loaded, policy, (BATCH[1],) if of_batch else row_lengths(tokens.lengths))
        work = functools.partial(runner.vectors, tokens, lambda *_: None)
        start = time.perf_counter()
        vectors = work()
        first = time.perf_counter() - start
        median, times = median_seconds(work, batches if of_batch else passes, warmup=4 if of_batch else 0)
        np.save(place / f"ours-{policy}-{kernel}.npy", vectors)
        found[kind] = {
            "seconds": times,
            "median_seconds": median,
            "compile_seconds": first - median,
            "flops": _flops(loaded.config, tokens.lengths),
            "peak_gib": peak_gib(),
        } | _device_memory()
    return found


def _flops(config: Any, lengths: np.ndarray) -> int:
    """Of texts of so many tokens: a multiplication and an addition per weight of the products, and of attention's."""
    wide, inner, tokens = config.hidden_size, config.intermediate_size, lengths.astype(np.int64)
    products = tokens * (4 * wide * wide + 2 * wide * inner) + 2 * tokens * tokens * wide
    return int(2 * config.num_layers * products.sum())


def _device_memory() -> dict[str, float]:
    """The most that was ever taken of the device's own memory; nothing on a CPU."""
    import jax

    found = jax.devices()[0].memory_stats() or {}
    return {"device_gib": found["peak_bytes_in_use"] / GIB} if "peak_bytes_in_use" in found else {}


def platform_task() -> dict[str, Any]:
    """What the children compute on: asked in one of them, since a process that has asked keeps the device."""
    import jax

    return {"platform": jax.default_backend()}


def peak_task() -> dict[str, Any]:
    """The largest rate of one product of large matrices, per type of operands: FLOP/s."""
    import jax
    import jax.numpy as jnp

    from ltrec_jax.encoder import int8

    shapes = [(2048, 2048, 2048), (2048, 384, 1536), (2048, 1536, 384)]
    if jax.default_backend() != "cpu":
        shapes.append((8192, 8192, 8192))
    found = {}
    for name, dtype, out in (
        ("float32", jnp.float32, jnp.float32),
        ("bfloat16", jnp.bfloat16, jnp.float32),
        ("int8", jnp.int8, None),
    ):
        rates = []
        # Without it a GPU rounds float32 to TF32. Random numbers: products of equal ones run faster there.
        precision = jax.lax.Precision.HIGHEST if name == "float32" else None
        product = jax.jit(lambda a, b, p=precision, o=out: jax.lax.dot(a, b, precision=p, preferred_element_type=o))
        if name == "int8":
            product = jax.jit(int8.sums)
        for rows, inner, columns in shapes:
            left, right = (
                20.0 * jax.random.normal(jax.random.key(n), shape)
                for n, shape in enumerate([(rows, inner), (inner, columns)])
            )
            left = (left + 128.0).astype(jnp.uint8) if name == "int8" and int8.unsigned() else left.astype(dtype)
            right = right.astype(dtype)
            work = lambda f=product, a=left, b=right: f(a, b).block_until_ready()  # noqa: E731
            _, times = median_seconds(work, 20, warmup=3)
            rates.append(2 * rows * inner * columns / statistics.median(times))
        found[name] = max(rates)
    return found


TASKS = {"ours": ours_task, "peak": peak_task, "platform": platform_task}


def rival(python: str, folder: Path, **asked: Any) -> dict[str, dict[str, Any]]:
    """The PyTorch side in a process of its own: what it measured, by kind and order."""
    processors = sorted(os.sched_getaffinity(0))
    asked |= {"threads": len(processors), "processors": processors}
    done = subprocess.run(
        [python, str(RIVAL), str(folder), json.dumps(asked)], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def agreement(folder: Path, policy: str, kernel: str, theirs: str, order: str) -> float:
    """Smallest cosine between the sides; below the bound speeds mean nothing, and the benchmark ends."""
    mine = np.load(folder / f"ours-{policy}-{kernel}.npy")
    found = least_cosine(mine, np.load(folder / f"torch-{order}-{theirs}.npy"))
    if found < LEAST_COSINE[policy]:
        raise SystemExit(f"{policy} against PyTorch's {theirs} ({folder.name}): cosine {found}: speeds mean nothing")
    return found


def rank_correlation(folder: Path) -> float:
    """Spearman's, between float32 and int8, of the similarities of all pairs of titles."""
    import scipy.stats

    exact, rounded = (np.load(folder / f"ours-{policy}-xla.npy") for policy in ("float32", "int8"))
    pairs = np.triu_indices(len(exact), k=1)
    return float(scipy.stats.spearmanr((exact @ exact.T)[pairs], (rounded @ rounded.T)[pairs]).statistic)


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0], torch=True, one_heap=False)
    parser.add_argument("--encoder", default=ENCODER, help="the encoder of both sides: a name or directory")
    parser.add_argument("--rounds", type=int, help="processes of each measurement; default: 3 on a CPU, 1 on a GPU")
    given = parser.parse_args()
    if ran_task(given, TASKS):
        return
    sizes = CPU if in_child(__file__, "platform")["platform"] == "cpu" else GPU
    if sizes is CPU:
        # Of this process, and so of all that it starts.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    if given.rounds or given.quick:
        sizes = dataclasses.replace(sizes, rounds=given.rounds or 1, passes=1 if given.quick else sizes.passes)
    if given.quick:
        sizes = dataclasses.replace(sizes, long_texts=32, cut_texts=32)
    with tempfile.TemporaryDirectory(prefix="bench-encode-") as name:
        folder = Path(name)
        about = write_texts(folder, given.encoder, given.quick, sizes)
        details = measure(folder, about, sizes, given.torch_python or sys.executable, 5 if given.quick else 15)
    headline = summarise(details)
    report(given.json, "encode", headline, details, rows(details, headline))


def measure(folder: Path, about: dict[str, Any], sizes: Sizes, python: str, batches: int) -> dict[str, Any]:
    """Everything, both sides in turns, outputs compared as soon as both sides have them."""
    encoder = about.pop("encoder")
    details: dict[str, Any] = {"texts": about, "least_cosine": {}}
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {"ours": {}, "torch": {}}

    def keep(side: str, label: str, found: dict[str, Any]) -> None:
        runs[side].setdefault(label, []).append(found)
        print(f"{side}, {label}: {found['median_seconds']:.4f} s", file=sys.stderr, flush=True)

    for kinds in sizes.processes:
        asked = {"encoder": encoder, "kinds": kinds, "passes": sizes.passes, "batches": batches}
        for _ in range(sizes.rounds):
            for policy, kernel in sizes.kernels:
                mine = [kind for kind in kinds if policy != "int8" or kind in sizes.int8]
                settings = asked | {"folder": str(folder), "policy": policy, "kernel": kernel, "kinds": mine}
                found_all = in_child(__file__, "ours", **settings)
                for kind in mine:
                    keep("ours", _label(kind, policy, kernel), found_all[kind])
                for numbers in sizes.rivals.get(policy, ()) if kernel == "xla" else ():
                    for place, found in rival(python, folder, **asked, numbers=numbers, sizes=sizes.batches).items():
                        keep("torch", f"{place}, {numbers}", found)
        for kind, (policy, kernel) in itertools.product(kinds, sizes.kernels):
            if policy == "int8" and kind not in sizes.int8:
                continue
            order = "batch" if kind == "batch" else "sorted"
            for numbers in sizes.rivals.get(policy, ("float32",)):
                label = f"{_label(kind, policy, kernel)} against {numbers}"
                details["least_cosine"][label] = agreement(folder / kind, policy, kernel, numbers, order)
    for side, of_side in runs.items():
        details[side] = {label: _merged(found) for label, found in of_side.items()}
    details["peak_flops"] = in_child(__file__, "peak")
    details["int8_rank_correlation"] = rank_correlation(folder / "titles")
    return details


def _label(kind: str, policy: str, kernel: str) -> str:
    return f"{kind}, {policy}" if kernel == "xla" else f"{kind}, {policy}, {kernel}"


def _merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One measurement from those of several processes: all their times and the median, the largest peak."""
    times = [seconds for run in runs for seconds in run["seconds"]]
    own = {
        "seconds": times,
        "median_seconds": statistics.median(times),
        "peak_gib": max(run["peak_gib"] for run in runs),
    }
    return runs[0] | own


def best_of_ours(details: dict[str, Any], kind: str, policy: str) -> float:
    """Seconds of our faster way to compute attention."""
    known = (f"{kind}, {policy}", f"{kind}, {policy}, cudnn")
    return min(details["ours"][label]["median_seconds"] for label in known if label in details["ours"])


def best_rival(details: dict[str, Any], kind: str, order: str, policy: str) -> float:
    """Seconds of PyTorch's faster variant."""
    known = (f"{kind}, {order}, {numbers}" for numbers in RIVAL_NUMBERS[policy])
    return min(details["torch"][label]["median_seconds"] for label in known if label in details["torch"])


def summarise(details: dict[str, Any]) -> dict[str, float]:
    """The headline. `encode_vs_*` are the smallest over both sets of uneven texts and both precisions."""
    ours = {
        f"{kind}, {policy}": best_of_ours(details, kind, policy)
        for kind, policy in itertools.product(ALL, POLICIES)
        if f"{kind}, {policy}" in details["ours"]
    }
    ratios = {
        order: {
            f"{kind}, {policy}": best_rival(details, kind, order, policy) / ours[f"{kind}, {policy}"]
            for kind in TEXTS
            for policy in RIVAL_NUMBERS
        }
        for order in ("given", "sorted")
    }
    details["ratios"] = {"padded": ratios["given"], "bucketed": ratios["sorted"]}
    details["int8_ratios"] = {
        f"{kind}, {order}": best_rival(details, kind, order, "bfloat16") / ours[f"{kind}, int8"]
        for kind in TEXTS
        for order in ("given", "sorted")
        if f"{kind}, int8" in ours
    }
    # What remained if everything beside the products took no time.
    details["ceilings"] = {
        order: {
            f"{kind}, {policy}": best_rival(details, kind, place, policy)
            * details["peak_flops"][policy]
            / details["texts"][kind]["flops"]
            for kind in TEXTS
            for policy in RIVAL_NUMBERS
        }
        for order, place in (("padded", "given"), ("bucketed", "sorted"))
    }
    details["peak_fractions"] = {
        policy: details["ours"][f"batch, {policy}"]["flops"] / ours[f"batch, {policy}"] / details["peak_flops"][policy]
        for policy in POLICIES
    }
    return {
        "encode_vs_torch_padded": smallest(ratios["given"]),
        "encode_vs_torch_bucketed": smallest(ratios["sorted"]),
        "same_batch_f32": best_rival(details, "batch", "batch", "float32") / ours["batch, float32"],
        "same_batch_bf16": best_rival(details, "batch", "batch", "bfloat16") / ours["batch, bfloat16"],
        "int8_vs_torch_bf16": best_rival(details, "batch", "batch", "bfloat16") / ours["batch, int8"],
        "int8_rank_correlation": details["int8_rank_correlation"],
        "peak_fraction": details["peak_fractions"]["float32"],
    }


def smallest(ratios: dict[str, float]) -> float:
    """Over texts of uneven length."""
    return min(ratio for label, ratio in ratios.items() if label.split(",")[0] in UNEVEN)


def rows(details: dict[str, Any], headline: dict[str, float]) -> list[tuple[str, str]]:
    """The table on the terminal."""
    counts = {kind: details["texts"][kind]["texts"] for kind in TEXTS} | {"batch": BATCH[0]}
    found = []
    for side in ("ours", "torch"):
        for label, result in details[side].items():
            rate = counts[label.split(",")[0]] / result["median_seconds"]
            device = f" ({result['device_gib']:.2f} of the device)" if result.get("device_gib") else ""
            found.append((f"{side}, {label}", f"{rate:,.0f} texts/s, peak {result['peak_gib']:.2f} GiB{device}"))
    for name in ("ratios", "ceilings", "int8_ratios", "peak_fractions"):
        for label, value in details[name].items():
            shown = ", ".join(f"{k} {v:.2f}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.2f}"
            found.append((f"{name}: {label}", shown))
    return found + [(name, f"{value:.3f}") for name, value in headline.items()]


if __name__ == "__main__":
    main()
