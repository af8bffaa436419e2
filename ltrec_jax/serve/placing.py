"""New texts to vectors in a request's time: tokens, encoder and head in two compiled shapes, warmed up beforehand.

Texts that arrive while a call runs share the next one (micro-batching). Out of scope: a whole catalogue
(`encoder.catalogue`).
"""

import dataclasses
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from ltrec_jax.bundle import Bundle
from ltrec_jax.encoder.catalogue import Runner, make_runner
from ltrec_jax.text.store import TokenStore
from ltrec_jax.text.tokenizer import load_tokenizer

_TEXTS_PER_CALL = 16


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where K texts stand: pooled text vectors float32 [K, E], anchors [K, D] and text biases [K]; `cut` were longer
    than the encoder reads here."""

    text_KxE: np.ndarray
    anchor_KxD: np.ndarray
    bias_K: np.ndarray
    cut: int


def anchors(head: Mapping[str, np.ndarray], text_KxE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(anchor [K, D], text bias [K]) of pooled text vectors, as `model.head.Head` has them, in NumPy.

    Where a bundle has `words`, what they add is still to come.
    """
    z_KxE = np.asarray(text_KxE, np.float32) - head["center"]
    z_KxE = z_KxE / np.sqrt(np.maximum((z_KxE**2).sum(axis=1, keepdims=True), 1e-12))
    intercept = head.get("intercept", np.zeros(head["projection"].shape[1] + 1, np.float32))
    return z_KxE @ head["projection"] + intercept[1:], z_KxE @ head["text_bias"] + intercept[0]


class Placer:
    """The bundle's encoder behind a queue; one thread runs it."""

    def __init__(self, bundle: Bundle) -> None:
        self._head, self._words = bundle.head, bundle.words
        self._max_length = min(bundle.config.data.max_length, bundle.encoder.config.max_positions)
        self._tokenizer = load_tokenizer(bundle.encoder.directory, bundle.encoder.config.vocab_size)
        self._one, self._many = (_runner(bundle, self._max_length, texts) for texts in (1, _TEXTS_PER_CALL))
        self._waiting: queue.SimpleQueue[tuple[list[str], Future[Placed]] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="placer", daemon=True)
        self._thread.start()

    def warm_up(self) -> None:
        """Compile both shapes."""
        self.place(["warm up"])
        self.place(["warm up"] * 2)

    def submit(self, texts: Sequence[str]) -> "Future[Placed]":
        """Place texts soon; the future has their vectors."""
        if self._closed:
            raise RuntimeError("this placer is closed")
        future: Future[Placed] = Future()
        self._waiting.put((list(texts), future))
        return future

    def place(self, texts: Sequence[str]) -> Placed:
        """Place texts and wait for it."""
        return self.submit(texts).result()

    def close(self) -> None:
        """Finish what waits and stop the thread."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            taken, last = [first], False
            while sum(len(texts) for texts, _ in taken) < _TEXTS_PER_CALL and not last:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                else:
                    taken.append(more)
            self._answer(taken)
            if last:
                return

    def _answer(self, taken: list[tuple[list[str], "Future[Placed]"]]) -> None:
        """Encode the texts of several requests in one call; each gets its own rows and its own count of cut texts."""
        try:
            tokens = [self._tokenizer.encode(texts, self._max_length) for texts, _ in taken]
            lengths = np.concatenate([np.diff(offsets) for _, offsets, _ in tokens])
            values = np.concatenate([values for values, *_ in tokens])
            store = TokenStore(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
            runner = self._one if len(store) == 1 else self._many
            text_KxE = runner.vectors(store, lambda *_: None)
            anchor_KxD, bias_K = anchors(self._head, text_KxE)
            if self._words is not None:
                more_KxD, more_K = self._words.anchors(store)
                anchor_KxD, bias_K = anchor_KxD + more_KxD, bias_K + more_K
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits, and the thread must live on
            for _, future in taken:
                future.set_exception(error)
            return
        start = 0
        for (texts, future), (*_, cut) in zip(taken, tokens, strict=True):
            rows = slice(start, start + len(texts))
            start += len(texts)
            future.set_result(Placed(text_KxE[rows], anchor_KxD[rows], bias_K[rows], cut))


def _runner(bundle: Bundle, max_length: int, texts: int) -> Runner:
    return make_runner(bundle.encoder, bundle.config.encoder.precision, (max_length,), texts * max_length)
