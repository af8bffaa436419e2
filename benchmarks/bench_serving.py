"""How fast is a served answer: known users over HTTP, a million items, a new item, a new user, everybody at once.

    python benchmarks/bench_serving.py --json benchmarks/results/bench_serving.json

Server and client share the machine (loopback). Beside it stand a plain NumPy server with the same lists, FAISS with the
share of the exact lists that it finds, and, where PyTorch is installed, its encoder for the new item's text.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import serving_world as world
from harness import arguments, in_child, median_seconds, ran_task, report

PORT = 8765


@contextlib.contextmanager
def server(command: list[str], port: int) -> Iterator[None]:
    """A server as a child process, ready when the block begins."""
    process = subprocess.Popen(command)
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/ready").read()
                break
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {command}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def ask(port: int, path: str, body: dict[str, Any], method: str = "POST") -> Any:
    """One request, and its answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}, method=method
    )
    return json.loads(urllib.request.urlopen(request).read())


def put_to_visible(port: int, count: int) -> list[float]:
    """Milliseconds from the start of a PUT of a new item to the end of a recommendation that shows it."""
    times = []
    for number in range(count):
        start = time.perf_counter()
        ask(port, f"/v1/items/new{number}", {"text": f"The new film {number} (2031). Comedy, Drama"}, "PUT")
        answer = ask(port, "/v1/recommend", {"user": "7", "k": 1, "allow": [f"new{number}"]})
        if answer["items"][0]["item_id"] != f"new{number}":
            raise SystemExit("the new item was not shown")
        times.append(1e3 * (time.perf_counter() - start))
    return times


def task_load(port: int, connections: int, requests: int, rate: float = 0.0) -> dict[str, Any]:
    """The client, in a process of its own."""
    return world.load(port, connections, requests, rate)


def task_million(items: int, width: int, requests: int) -> dict[str, Any]:
    """Exact and approximate search of a large catalogue, one request at a time, on one core."""
    import os

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from ltrec_jax.model.two_tower import Vectors
    from ltrec_jax.serve.faiss_index import faiss_index
    from ltrec_jax.serve.index import Among, agreement, exact_index

    rng = np.random.default_rng(0)
    # Items around 2,000 centres: a catalogue has neighbourhoods, without which no approximate index finds anything.
    centres = rng.normal(size=(2000, width))
    q = (centres[rng.integers(0, 2000, items)] + 0.5 * rng.normal(size=(items, width))).astype(np.float32)
    p = (centres[rng.integers(0, 2000, requests)] + 0.5 * rng.normal(size=(requests, width))).astype(np.float32)
    vectors = Vectors(0.0, p, np.zeros(requests, np.float32), q, rng.normal(size=items).astype(np.float32))
    group = (np.arange(items) * 3 // items).astype(np.uint8)
    found: dict[str, Any] = {}
    exact = exact_index(vectors)
    seen = [rng.choice(items, 100, replace=False)]
    for name in ("float32", "bfloat16", "int8", "ivf"):
        start = time.perf_counter()
        index = {"float32": lambda: exact, "ivf": lambda: faiss_index(vectors, "ivf")}.get(
            name, lambda name=name: exact_index(vectors, name)
        )()
        built = time.perf_counter() - start
        index.search(p[:1], np.zeros(1, np.float32), 10, Among(seen))
        times = []
        for row in range(requests):
            start = time.perf_counter()
            index.search(p[row : row + 1], np.zeros(1, np.float32), 10, Among(seen))
            times.append(1e3 * (time.perf_counter() - start))
        kept = agreement(index, exact, vectors, group, ("first third", "second third", "last third"))
        found[name] = {"milliseconds": times, "build_s": built, "kept": kept}
    return {"indexes": found}


def task_inside(run: str) -> dict[str, Any]:
    """What needs no HTTP: a new user of 20 ratings, and lists for everybody."""
    from ltrec_jax import topk
    from ltrec_jax.bundle import Bundle
    from ltrec_jax.serve.service import Query, Service

    bundle = Bundle.load(Path(run) / "bundle")
    service = Service(bundle)
    rng = np.random.default_rng(0)
    rated = [(rng.choice(world.ITEMS, 20, replace=False), rng.integers(1, 6, 20)) for _ in range(200)]
    turn = iter(rated * 10)
    fold_in, _ = median_seconds(lambda: service.users.from_ratings(*next(turn)), 200)
    query = Query(rated={str(i): float(r) for i, r in zip(*rated[0], strict=True)})
    whole, _ = median_seconds(lambda: service.recommend([query]), 50)

    def everybody() -> None:
        users = np.arange(bundle.num_users)
        for _ in topk.ranked(bundle.score, users, num_items=bundle.num_items, k=10, seen=bundle.history):
            pass

    batch, times = median_seconds(everybody, 5)
    service.close()
    return {"fold_in_ms": 1e3 * fold_in, "new_user_answer_ms": 1e3 * whole, "batch_s": batch, "batch_times": times}


def task_torch_encode(count: int) -> dict[str, Any]:
    """One short text at a time through PyTorch's BertModel (tokenizer included), for the new item's share."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from ltrec_jax.encoder import registry

    place = str(registry.resolve("all-MiniLM-L6-v2"))
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()

    def encode(number: int) -> None:
        tokens = tokenizer([f"The new film {number} (2031). Comedy, Drama"], return_tensors="pt")
        with torch.inference_mode():
            model(**tokens).last_hidden_state.mean(dim=1)

    turn = iter(range(count + 1))
    middle, times = median_seconds(lambda: encode(next(turn)), count)
    return {"milliseconds": [1e3 * t for t in times], "median": 1e3 * middle}


def task_our_encode(run: str, count: int) -> dict[str, Any]:
    """The same through the service's queue."""
    from ltrec_jax.bundle import Bundle
    from ltrec_jax.serve.placing import Placer

    placer = Placer(Bundle.load(Path(run) / "bundle"))
    placer.warm_up()
    turn = iter(range(count + 1))
    middle, _ = median_seconds(lambda: placer.place([f"The new film {next(turn)} (2031). Comedy, Drama"]), count)
    placer.close()
    return {"median": 1e3 * middle}


TASKS = {
    "load": task_load,
    "million": task_million,
    "inside": task_inside,
    "torch": task_torch_encode,
    "encode": task_our_encode,
}


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    given = parser.parse_args()
    if ran_task(given, TASKS):
        return
    few = given.quick
    requests, million = (300, 20_000) if few else (5000, 1_000_000)
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as name:
        run = Path(name) / "run"
        run.mkdir()
        world.write_run(run)
        ours = [sys.executable, "-m", "ltrec_jax.cli", "serve", str(run), "--port", str(PORT)]
        with server(ours, PORT):
            in_child(__file__, "load", port=PORT, connections=4, requests=300)
            details["steady"] = in_child(__file__, "load", port=PORT, connections=16, requests=requests, rate=250.0)
            details["closed"] = in_child(__file__, "load", port=PORT, connections=4, requests=requests)
            put_to_visible(PORT, 3)
            details["put_to_visible_ms"] = put_to_visible(PORT, 5 if few else 50)
        plain = (
            "import sys; sys.path.insert(0, sys.argv[1]); import serving_world as world\n"
            "world.numpy_server(sys.argv[2], int(sys.argv[3]))"
        )
        beside = [sys.executable, "-c", plain, str(Path(__file__).parent), str(run), str(PORT + 1)]
        with server(beside, PORT + 1):
            in_child(__file__, "load", port=PORT + 1, connections=4, requests=300)
            details["numpy_steady"] = in_child(
                __file__, "load", port=PORT + 1, connections=16, requests=requests, rate=250.0
            )
            details["numpy_closed"] = in_child(__file__, "load", port=PORT + 1, connections=4, requests=requests)
        details["inside"] = in_child(__file__, "inside", run=str(run))
        details["encode"] = in_child(__file__, "encode", run=str(run), count=10 if few else 100)
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401

            details["torch_encode"] = in_child(__file__, "torch", count=10 if few else 100)
    details["million"] = in_child(__file__, "million", items=million, width=64, requests=20 if few else 100)["indexes"]
    p99 = {name: float(np.percentile(details[name]["milliseconds"], 99)) for name in ("steady", "numpy_steady")}
    p50 = {name: float(np.median(details[name]["milliseconds"])) for name in ("steady", "numpy_steady")}
    large = {name: float(np.median(one["milliseconds"])) for name, one in details["million"].items()}
    headline = {
        "known_user_p99_ms": p99["steady"],
        "requests_per_s": details["closed"]["requests_per_s"],
        "exact_1m_p50_ms": large["float32"],
        "put_to_visible_ms": float(np.median(details["put_to_visible_ms"])),
        "fold_in_ms": details["inside"]["fold_in_ms"],
        "batch_all_users_s": details["inside"]["batch_s"],
    }
    rows = [
        ("known user, 250 requests/s", f"p50 {p50['steady']:.1f} ms, p99 {p99['steady']:.1f} ms"),
        ("  plain NumPy server", f"p50 {p50['numpy_steady']:.1f} ms, p99 {p99['numpy_steady']:.1f} ms"),
        ("known user, 4 clients that wait", f"{headline['requests_per_s']:,.0f} requests/s"),
        ("  plain NumPy server", f"{details['numpy_closed']['requests_per_s']:,.0f} requests/s"),
        ("new item, PUT to shown", f"{headline['put_to_visible_ms']:.1f} ms"),
        ("  its text through the encoder", f"{details['encode']['median']:.1f} ms"),
        ("new user of 20 ratings, vector", f"{headline['fold_in_ms']:.2f} ms"),
        ("  and the answer", f"{details['inside']['new_user_answer_ms']:.2f} ms"),
        ("lists for all users", f"{headline['batch_all_users_s']:.2f} s"),
    ]
    if "torch_encode" in details:
        rows.insert(6, ("  through PyTorch", f"{details['torch_encode']['median']:.1f} ms"))
    for name, value in large.items():
        kept = ", ".join(f"{group} {share:.1%}" for group, share in details["million"][name]["kept"].items())
        rows.append((f"{million:,} items, one core, {name}", f"p50 {value:.1f} ms; of the exact 20: {kept}"))
    report(given.json, "serving", headline, details, rows)


if __name__ == "__main__":
    main()
