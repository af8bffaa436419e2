import threading

import numpy as np
import pytest

from ltrec_jax.serve.placing import Placer, anchors

TEXTS = ["the comet orbit", "the heist", "the tractor barn cattle", "the alibi witness", "the lunar"]


@pytest.fixture(scope="module")
def placer(bundle):
    placer = Placer(bundle)
    placer.warm_up()
    yield placer
    placer.close()


def test_texts_stand_where_the_bundle_puts_them(bundle, placer):
    """A catalogue text placed anew has the vector that training left, but for the half precision it is kept in."""
    texts = bundle.items["text"].tolist()[:20]
    placed = placer.place(texts)
    np.testing.assert_allclose(placed.text_KxE, bundle.text_vectors[:20], atol=2e-3)
    unrated = np.arange(80, 90)
    cold = placer.place(bundle.items["text"].iloc[unrated].tolist())
    np.testing.assert_allclose(cold.anchor_KxD, bundle.vectors.item_vectors[unrated], atol=1e-5)
    np.testing.assert_allclose(cold.bias_K, bundle.vectors.item_biases[unrated], atol=1e-5)
    np.testing.assert_array_equal(cold.anchor_KxD, anchors(bundle.head, cold.text_KxE)[0])


def test_texts_that_come_together_share_calls_and_get_their_own(placer, monkeypatch):
    alone = {text: placer.place([text]) for text in TEXTS}
    calls, gate, answer = [], threading.Event(), placer._answer

    def slow(taken):
        gate.wait()
        calls.append(len(taken))
        answer(taken)

    monkeypatch.setattr(placer, "_answer", slow)
    long = "the " * 40
    futures = [placer.submit([text]) for text in [*TEXTS, long]]
    gate.set()
    found = [future.result(timeout=30) for future in futures]
    assert len(calls) < len(futures)
    assert sum(calls) == len(futures)
    for text, placed in zip(TEXTS, found, strict=False):
        np.testing.assert_allclose(placed.text_KxE, alone[text].text_KxE, atol=1e-5)
    assert [placed.cut for placed in found] == [0] * len(TEXTS) + [1]


def test_a_failure_reaches_who_waits_and_the_next_text_is_placed(placer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(placer, "_one", type("Broken", (), {"vectors": lambda *_: 1 / 0})())
        with pytest.raises(ZeroDivisionError):
            placer.place(["the comet"])
    assert placer.place(["the comet"]).text_KxE.shape[0] == 1
