"""A signal ends the work at once or is kept for later, and files are whole either way."""

import contextlib
import signal

import pytest

from ltrec_jax import storage
from ltrec_jax.errors import StoppedError
from ltrec_jax.train import stopping

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def handlers():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@BOTH
def test_a_signal_ends_the_work_at_once_and_leaves_nothing_half_written(number, tmp_path):
    told = "; all is well"
    with (
        pytest.raises(StoppedError, match=f"Stopped on {number.name}{told}"),
        stopping.at_once(told),
        storage.new_directory(tmp_path / "made") as place,
    ):
        (place / "first").write_text("1")
        signal.raise_signal(number)
        pytest.fail("the work went on")
    assert not list(tmp_path.iterdir())


def test_a_rename_is_finished_first(tmp_path, monkeypatch):
    """Between the renames of a replacement neither old nor new stands under the name."""
    storage.write_text(tmp_path / "made" / "file", "old")
    sync = storage._sync
    monkeypatch.setattr(storage, "_sync", lambda path: (signal.raise_signal(signal.SIGTERM), sync(path)))
    went_on = False
    with pytest.raises(StoppedError), stopping.at_once(""):
        with storage.new_directory(tmp_path / "made", replace=True) as place:
            (place / "file").write_text("new")
        went_on = True
        stopping.check()
        pytest.fail("the next check let it go on")
    assert went_on
    assert (tmp_path / "made" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_signal_that_a_library_swallows_is_honoured_at_the_end():
    with pytest.raises(StoppedError), stopping.at_once(""), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_deferred_signal_waits_and_is_handed_out():
    done = []
    with pytest.raises(StoppedError, match="Stopped on SIGTERM"), stopping.at_once(""):
        with stopping.deferred() as stop:
            signal.raise_signal(signal.SIGTERM)
            done.append(stop.asked)
            with stopping.deferred() as inner:
                done.append(inner.asked)
        done.append("beyond")
    assert done == ["SIGTERM", "SIGTERM"]


@pytest.fixture
def interruptible():
    """SIGINT as Python has it: a shell starts what runs in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_deferred_signal_that_nobody_honoured_is_not_lost():
    with pytest.raises(KeyboardInterrupt), stopping.deferred():
        signal.raise_signal(signal.SIGINT)


def test_one_that_was_honoured_comes_once():
    with pytest.raises(StoppedError, match="saved"), stopping.at_once(""), stopping.deferred() as stop:
        signal.raise_signal(signal.SIGTERM)
        raise StoppedError(f"{stop.asked}: saved")


def test_an_interrupt_without_a_signal_stays_what_it_is():
    with pytest.raises(KeyboardInterrupt), stopping.at_once(""):
        raise KeyboardInterrupt


def test_without_anybody_asking_nothing_happens():
    with stopping.at_once(""), stopping.deferred() as stop:
        stopping.check()
    stopping.check()
    assert not stop.asked
