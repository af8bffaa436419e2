"""Encoding beside PyTorch's BertModel: the same weights and tokens, vectors compared first, then texts per second.

    python benchmarks/bench_encode.py --json benchmarks/results/bench_encode.json

Real texts of uneven length (film titles with genres; the same joined to 100-200 words) against PyTorch padded to each
batch's longest text and against PyTorch with batches of sorted length; one padded batch of 64 x 32 tokens on both
sides; int8 against PyTorch's bfloat16. Two threads on both sides, each measurement in a process of its own, the sides
in turns. PyTorch's batch size, and autocast or bfloat16 weights, are whichever is faster. Tokenizing is the same on
both sides and not measured. `ceilings` are the ratios of a program that did nothing but the encoder's products, of the
texts' own tokens, at the machine's measured peak.
"""

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
from harness import arguments, in_child, median_seconds, ran_task, report

RIVAL = Path(__file__).with_name("torch_reference.py")
ENCODER = "all-MiniLM-L6-v2"
THREADS = 2
BATCH = (64, 32)
TEXTS = {"titles": "film titles with genres", "long": "the same joined to 100-200 words"}
# Between the sides, per text: float32 is the same arithmetic, bfloat16 rounds in other places.
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.999, "int8": 0.97}
RIVAL_NUMBERS = {"float32": ("float32",), "bfloat16": ("autocast", "bfloat16")}


def write_texts(folder: Path, quick: bool) -> dict[str, Any]:
    """Token ids of both sets of texts and of the padded batch, for both sides; how long the texts are."""
    from ltrec_jax.data import sources
    from ltrec_jax.encoder.weights import load_encoder
    from ltrec_jax.text import corpus
    from ltrec_jax.text.store import build_store
    from ltrec_jax.text.tokenizer import load_tokenizer

    encoder = load_encoder(ENCODER)
    tokenizer = load_tokenizer(encoder.directory, encoder.config.vocab_size)
    titles = [text for _, texts in corpus.of(sources.load("movielens-1m")).chunks() for text in texts]
    rng = np.random.default_rng(0)
    joined: list[str] = []
    for _ in range(32 if quick else 192):
        words: list[str] = []
        wanted = int(rng.integers(100, 201))
        while len(words) < wanted:
            words += titles[int(rng.integers(len(titles)))].split()
        joined.append(" ".join(words[:wanted]))
    about: dict[str, Any] = {}
    for name, texts in (("titles", titles[:256] if quick else titles), ("long", joined)):
        store = build_store(texts, tokenizer, encoder.max_length)
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


def catalogue_task(folder: str, policy: Any, repeats: int) -> dict[str, Any]:
    """Our side of a set of texts, as `ltrec encode` does it; what the first pass takes longer is compiling."""
    from ltrec_jax.encoder.catalogue import encode_catalogue
    from ltrec_jax.encoder.weights import load_encoder
    from ltrec_jax.text.store import TokenStore

    encoder, place = load_encoder(ENCODER), Path(folder)
    tokens = TokenStore(np.load(place / "values.npy"), np.load(place / "offsets.npy"))

    def run() -> np.ndarray:
        return encode_catalogue(encoder, tokens, policy=policy, progress=False)

    start = time.perf_counter()
    found = run()
    first = time.perf_counter() - start
    median, times = median_seconds(run, repeats, warmup=0)
    np.save(place / f"ours-{policy}.npy", found)
    return {"seconds": times, "median_seconds": median, "compile_seconds": first - median}


def batch_task(folder: str, policy: Any, repeats: int) -> dict[str, Any]:
    """Our side of the padded batch: rows of its own length, so that nothing is packed."""
    from ltrec_jax.encoder.catalogue import make_runner
    from ltrec_jax.encoder.weights import load_encoder
    from ltrec_jax.text.store import TokenStore

    encoder, place = load_encoder(ENCODER), Path(folder)
    ids = np.load(place / "ids.npy")
    tokens = TokenStore(ids.reshape(-1), np.arange(len(ids) + 1) * ids.shape[1])
    runner = make_runner(encoder, policy, (ids.shape[1],))

    def run() -> np.ndarray:
        return runner.vectors(tokens, lambda *_: None)

    start = time.perf_counter()
    found = run()
    first = time.perf_counter() - start
    median, times = median_seconds(run, repeats, warmup=4)
    np.save(place / f"ours-{policy}.npy", found)
    return {
        "seconds": times,
        "median_seconds": median,
        "compile_seconds": first - median,
        "flops": _flops(encoder.config, np.full(BATCH[0], BATCH[1])),
    }


def _flops(config: Any, lengths: np.ndarray) -> int:
    """Of texts of so many tokens: a multiplication and an addition per weight of the products, and of attention's."""
    wide, inner, tokens = config.hidden_size, config.intermediate_size, lengths.astype(np.int64)
    products = tokens * (4 * wide * wide + 2 * wide * inner) + 2 * tokens * tokens * wide
    return int(2 * config.num_layers * products.sum())


def peak_task() -> dict[str, Any]:
    """The largest rate of one product of large matrices, per type of operands: FLOP/s."""
    import jax
    import jax.numpy as jnp

    found = {}
    for name, dtype, out in (
        ("float32", jnp.float32, jnp.float32),
        ("bfloat16", jnp.bfloat16, jnp.float32),
        ("int8", jnp.int8, jnp.int32),
    ):
        rates = []
        for rows, inner, columns in ((2048, 2048, 2048), (2048, 384, 1536), (2048, 1536, 384)):
            left, right = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
            product = jax.jit(lambda a, b, out=out: jax.lax.dot(a, b, preferred_element_type=out))
            work = lambda f=product, a=left, b=right: f(a, b).block_until_ready()  # noqa: E731
            _, times = median_seconds(work, 20, warmup=3)
            rates.append(2 * rows * inner * columns / statistics.median(times))
        found[name] = max(rates)
    return found


TASKS = {"catalogue": catalogue_task, "batch": batch_task, "peak": peak_task}


def rival(python: str, folder: Path, encoder: str, numbers: str, order: str, repeats: int) -> dict[str, Any]:
    """The PyTorch side in a process of its own."""
    asked = {"encoder": encoder, "numbers": numbers, "order": order, "repeats": repeats, "threads": THREADS}
    asked |= {"sizes": [32, 64] if order != "batch" else [], "processors": _processors()}
    done = subprocess.run(
        [python, str(RIVAL), str(folder), json.dumps(asked)], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _processors() -> list[int]:
    return sorted(os.sched_getaffinity(0))[:THREADS]


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def agreement(folder: Path, policy: str, theirs: str, order: str) -> float:
    """Smallest cosine between the sides; below the bound speeds mean nothing, and the benchmark ends."""
    found = least_cosine(np.load(folder / f"ours-{policy}.npy"), np.load(folder / f"torch-{order}-{theirs}.npy"))
    if found < LEAST_COSINE[policy]:
        raise SystemExit(f"{policy} against PyTorch's {theirs} ({folder.name}): cosine {found}: speeds mean nothing")
    return found


def rank_correlation(folder: Path) -> float:
    """Spearman's, between float32 and int8, of the similarities of all pairs of titles."""
    import scipy.stats

    exact, rounded = (np.load(folder / f"ours-{policy}.npy") for policy in ("float32", "int8"))
    pairs = np.triu_indices(len(exact), k=1)
    return float(scipy.stats.spearmanr((exact @ exact.T)[pairs], (rounded @ rounded.T)[pairs]).statistic)


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0], torch=True)
    given = parser.parse_args()
    if given.task:
        os.sched_setaffinity(0, _processors())
    if ran_task(given, TASKS):
        return
    rounds = 1 if given.quick else 3
    with tempfile.TemporaryDirectory(prefix="bench-encode-") as name:
        details = measure(Path(name), given.torch_python or sys.executable, rounds, given.quick)
    headline = summarise(details)
    report(given.json, "encode", headline, details, rows(details, headline))


def measure(folder: Path, python: str, rounds: int, quick: bool) -> dict[str, Any]:
    """Everything, both sides in turns, outputs compared as soon as both sides have them."""
    about = write_texts(folder, quick)
    encoder = about.pop("encoder")
    details: dict[str, Any] = {"texts": about, "least_cosine": {}}
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {"ours": {}, "torch": {}}
    for kind in (*TEXTS, "batch"):
        place, of_batch = folder / kind, kind == "batch"
        task, repeats = ("batch", 5 if quick else 15) if of_batch else ("catalogue", 1)
        for _ in range(rounds):
            for policy in ("float32", "bfloat16", "int8"):
                found = in_child(__file__, task, folder=str(place), policy=policy, repeats=repeats)
                runs["ours"].setdefault(f"{kind}, {policy}", []).append(found)
                for numbers in RIVAL_NUMBERS.get(policy, ()):
                    for order in ("batch",) if of_batch else ("given", "sorted"):
                        label = f"{kind}, {order}, {numbers}"
                        found = rival(python, place, encoder, numbers, order, repeats)
                        runs["torch"].setdefault(label, []).append(found)
                        details["least_cosine"][label] = agreement(place, policy, numbers, order)
        order = "batch" if of_batch else "sorted"
        details["least_cosine"][f"{kind}, int8"] = agreement(place, "int8", "float32", order)
    for side, of_side in runs.items():
        details[side] = {label: _merged(found) for label, found in of_side.items()}
    details["peak_flops"] = in_child(__file__, "peak")
    details["int8_rank_correlation"] = rank_correlation(folder / "titles")
    return details


def _merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One measurement from those of several processes: all their times and the median, the largest peak."""
    times = [seconds for run in runs for seconds in run["seconds"]]
    own = {
        "seconds": times,
        "median_seconds": statistics.median(times),
        "peak_gib": max(run["peak_gib"] for run in runs),
    }
    return runs[0] | own


def best_rival(details: dict[str, Any], kind: str, order: str, policy: str) -> float:
    """Seconds of PyTorch's faster variant."""
    return min(details["torch"][f"{kind}, {order}, {numbers}"]["median_seconds"] for numbers in RIVAL_NUMBERS[policy])


def summarise(details: dict[str, Any]) -> dict[str, float]:
    """The headline. `encode_vs_*` are the smallest over both sets of texts and both precisions."""
    ours = {label: result["median_seconds"] for label, result in details["ours"].items()}
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
        for policy in ("float32", "bfloat16", "int8")
    }
    return {
        "encode_vs_torch_padded": min(ratios["given"].values()),
        "encode_vs_torch_bucketed": min(ratios["sorted"].values()),
        "same_batch_f32": best_rival(details, "batch", "batch", "float32") / ours["batch, float32"],
        "same_batch_bf16": best_rival(details, "batch", "batch", "bfloat16") / ours["batch, bfloat16"],
        "int8_vs_torch_bf16": best_rival(details, "batch", "batch", "bfloat16") / ours["batch, int8"],
        "int8_rank_correlation": details["int8_rank_correlation"],
        "peak_fraction": details["peak_fractions"]["float32"],
    }


def rows(details: dict[str, Any], headline: dict[str, float]) -> list[tuple[str, str]]:
    """The table on the terminal."""
    counts = {kind: details["texts"][kind]["texts"] for kind in TEXTS} | {"batch": BATCH[0]}
    found = []
    for side in ("ours", "torch"):
        for label, result in details[side].items():
            rate = counts[label.split(",")[0]] / result["median_seconds"]
            found.append((f"{side}, {label}", f"{rate:,.0f} texts/s, peak {result['peak_gib']:.2f} GiB"))
    for name in ("ratios", "ceilings", "int8_ratios", "peak_fractions"):
        for label, value in details[name].items():
            shown = ", ".join(f"{k} {v:.2f}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.2f}"
            found.append((f"{name}: {label}", shown))
    return found + [(name, f"{value:.3f}") for name, value in headline.items()]


if __name__ == "__main__":
    main()
