"""Tokenising in processes of their own: `python -m ltrec_jax.text.tokenizer_workers` is one, started by `Workers`.

Threads would do where each has a heap of its own. With one heap for all threads, which `memory.keep_freed` sets for the
training step, two tokenising threads take longer than one, for the library makes many small objects. Out of scope: what
a token is (`tokenizer`).
"""

import itertools
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Self

import numpy as np
import tokenizers

Tokens = tuple[np.ndarray, np.ndarray, int]
"""Token ids int32[T] of some texts one after the other, lengths int64[N], and how many texts were cut."""


def encode(engine: tokenizers.Tokenizer, texts: Sequence[str]) -> Tokens:
    """The tokens of some texts, by an engine that is told how long a text may be."""
    encoded = engine.encode_batch_fast(list(texts))
    ids = [one.ids for one in encoded]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    values = np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(lengths.sum()))
    return values, lengths, sum(bool(one.overflowing) for one in encoded)


class Workers:
    """As many processes as cores that tokenise with copies of one engine; a context that ends them."""

    def __init__(self, engine: tokenizers.Tokenizer, count: int | None = None) -> None:
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        count = count or os.cpu_count() or 1
        command = [sys.executable, "-m", __name__]
        # The folders of this process, so that the module is found however this one was started.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._all = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(count)
        ]
        self._threads = ThreadPoolExecutor(count)
        settings = json.dumps(engine.to_str()).encode() + b"\n"
        for worker in self._all:
            _pipe(worker.stdin).write(settings)
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            # An orderly end is the end of its input.
            worker.communicate()

    def submit(self, texts: Sequence[str]) -> "Future[Tokens]":
        """`encode` of these texts, by whichever worker is free next."""
        return self._threads.submit(self._ask, texts)

    def _ask(self, texts: Sequence[str]) -> Tokens:
        worker = self._idle.get()
        try:
            stream = _pipe(worker.stdin)
            stream.write(json.dumps(list(texts)).encode() + b"\n")
            stream.flush()
            read: Callable[[int], bytes] = _pipe(worker.stdout).read
            head = read(24)
            if len(head) < 24:
                raise RuntimeError(f"A tokenising process ended with code {worker.wait()}: its message is above.")
            count, total, cut = np.frombuffer(head, np.int64).tolist()
            lengths = np.frombuffer(read(8 * count), np.int64)
            return np.frombuffer(read(4 * total), np.int32), lengths, cut
        finally:
            self._idle.put(worker)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def main() -> None:
    """Answer one line of JSON texts after the other, until there is none."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    engine = tokenizers.Tokenizer.from_str(json.loads(requests.readline()))
    for line in requests:
        values, lengths, cut = encode(engine, json.loads(line))
        answers.write(
            np.array([len(lengths), len(values), cut], np.int64).tobytes() + lengths.tobytes() + values.tobytes()
        )
        answers.flush()


if __name__ == "__main__":
    main()
