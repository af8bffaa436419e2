"""What the serving benchmark needs: a bundle of MovieLens-1M's size, a plain NumPy server, a client that costs little.

The bundle has MiniLM, and drawn vectors and histories. The NumPy server gives the same lists.
"""

import asyncio
import http.server
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

_HEAD = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
USERS, ITEMS, WIDTH, SEEN = 6040, 3706, 64, 165


def write_run(run: Path) -> None:
    """A run directory whose bundle has MovieLens-1M's size: drawn vectors and histories, real encoder."""
    import pandas as pd

    from ltrec_jax import plain_settings, storage
    from ltrec_jax.bundle import Bundle
    from ltrec_jax.config import Config
    from ltrec_jax.data.history import History
    from ltrec_jax.data.popularity import popularity
    from ltrec_jax.encoder.weights import load_encoder
    from ltrec_jax.model.two_tower import Vectors

    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)  # noqa: E731
    chance = 1.0 / np.arange(1, ITEMS + 1) ** 0.8
    items = np.concatenate(
        [np.sort(rng.choice(ITEMS, SEEN, replace=False, p=chance / chance.sum())) for _ in range(USERS)]
    ).astype(np.int32)
    counted = popularity(items, ITEMS)
    encoder = load_encoder("all-MiniLM-L6-v2")
    hidden = encoder.config.hidden_size
    bundle = Bundle(
        config=Config(),
        about={"dataset": "drawn", "fingerprint": "", "split": "none", "scale": [1.0, 5.0], "positive_rating": 4.0},
        vectors=Vectors(3.5, draw(USERS, WIDTH), draw(USERS), draw(ITEMS, WIDTH), draw(ITEMS)),
        users=pd.DataFrame({"user_id": [str(u) for u in range(USERS)]}),
        items=pd.DataFrame(
            {
                "item_id": [str(i) for i in range(ITEMS)],
                "text": [f"Film number {i} (1999). Drama" for i in range(ITEMS)],
            }
        ),
        history=History(
            np.arange(0, USERS * SEEN + 1, SEEN), items, rng.integers(1, 6, USERS * SEEN).astype(np.float32)
        ),
        counts=counted.counts,
        group=counted.group,
        encoder=encoder,
        head={
            "center": draw(hidden),
            "projection": draw(hidden, WIDTH),
            "text_bias": draw(hidden),
            "mu": np.float32(3.5),
        },
        text_vectors=draw(ITEMS, hidden).astype(np.float16),
    )
    storage.write_text(run / "config.toml", plain_settings.to_toml(Config()))
    bundle.save(run / "bundle")


def numpy_server(run: str, port: int) -> None:
    """The same lists from NumPy and the standard library's HTTP server, without reasons, limits or a log."""
    from ltrec_jax.bundle import Bundle

    bundle = Bundle.load(Path(run) / "bundle")
    q, b = np.asarray(bundle.vectors.item_vectors), np.asarray(bundle.vectors.item_biases)
    texts, ids = bundle.items["text"].tolist(), bundle.items["item_id"].tolist()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet, or each answer waits for the client's acknowledgement
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            user, k = int(asked["user"]), asked["k"]
            scores = bundle.vectors.mu + bundle.vectors.user_biases[user] + b + q @ bundle.vectors.user_vectors[user]
            scores[bundle.history.of(user)[0]] = -np.inf
            best = np.argpartition(-scores, k)[:k]
            best = best[np.argsort(-scores[best], kind="stable")]
            self._answer(
                {"items": [{"item_id": ids[i], "text": texts[i], "score": float(scores[i])} for i in best.tolist()]}
            )

        def _answer(self, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def load(port: int, connections: int, requests: int, rate: float = 0.0) -> dict[str, Any]:
    """Send /v1/recommend for known users over so many connections; milliseconds of each request, and requests/s.

    `rate` > 0: requests leave at that many per second in all, whether answers have come or not (as users do), and
    waiting for a free connection counts.
    """
    return asyncio.run(_load(port, connections, requests, rate))


async def _load(port: int, connections: int, requests: int, rate: float) -> dict[str, Any]:
    times: list[float] = []
    users = np.random.default_rng(1).integers(0, USERS, requests)
    begin = time.perf_counter()

    async def one_connection(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(first, requests, connections):
            start = time.perf_counter()
            if rate:
                due = begin + number / rate
                if due > start:
                    await asyncio.sleep(due - start)
                start = due
            body = json.dumps({"user": str(users[number]), "k": 10}).encode()
            writer.write(_HEAD % len(body) + body)
            status, answer = await _read(reader)
            if status != 200 or not json.loads(answer)["items"]:
                raise SystemExit(f"the server answered {status}: {answer[:200]!r}")
            times.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(one_connection(number) for number in range(connections)))
    return {"milliseconds": [1e3 * t for t in times], "requests_per_s": requests / (time.perf_counter() - begin)}


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)
