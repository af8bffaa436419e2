import shutil
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from ltrec_jax.errors import UserError
from ltrec_jax.train.checkpoint import Checkpoints
from ltrec_jax.train.sparse_table import make_table
from ltrec_jax.train.state import TrainState


def state(value=1.0):
    return TrainState(
        step=jnp.int32(3),
        trainable={"head": {"projection": jnp.full((2, 2), value)}},
        frozen={},
        tables={"users": make_table(np.full((3, 2), value))},
        optimizer=(jnp.zeros(2), {"count": jnp.int32(1)}),
    )


def test_the_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as kept:
        for step, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]:
            kept.save(step, state(step), {"step": step}, best=best)
        kept.wait()
        assert kept.steps == [2, 4, 5]


def test_opened_again_it_keeps_no_more_and_no_less(tmp_path):
    for step, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 5)]:
        with Checkpoints(tmp_path, keep=1) as kept:
            kept.save(step, state(step), {}, best=best)
            kept.wait()
            assert kept.steps == sorted({best, step})


def test_what_is_no_longer_kept_is_renamed_before_it_is_deleted(tmp_path, monkeypatch):
    """A kill in the middle of a deletion must not leave half a checkpoint that looks like one."""
    deleted = []
    monkeypatch.setattr(shutil, "rmtree", lambda path: deleted.append(path))
    with Checkpoints(tmp_path, keep=1) as kept:
        for step in (1, 2, 3):
            kept.save(step, state(step), {}, best=step)
            kept.wait()
    monkeypatch.undo()
    assert sorted(path.relative_to(tmp_path).parts for path in set(deleted)) == [("dropped", "1"), ("dropped", "2")]
    # What such a kill has left is swept when the directory is opened again.
    with Checkpoints(tmp_path, keep=1) as kept:
        assert kept.steps == [3]
        assert not list((tmp_path / "dropped").iterdir())


def test_a_state_comes_back_bit_for_bit_with_its_notes(tmp_path):
    with Checkpoints(tmp_path, keep=2) as kept:
        kept.save(7, state(0.1), {"best": {"step": 5, "error": None}})
    with Checkpoints(tmp_path, keep=2) as kept:
        restored = kept.restore(state(0.0))
    assert restored.step == 7
    assert restored.notes == {"best": {"step": 5, "error": None}}
    assert isinstance(restored.state, TrainState)
    np.testing.assert_array_equal(restored.state.tables["users"].values, state(0.1).tables["users"].values)
    np.testing.assert_array_equal(
        restored.state.trainable["head"]["projection"], state(0.1).trainable["head"]["projection"]
    )


def test_nothing_saved_is_none(tmp_path):
    with Checkpoints(tmp_path, keep=1) as kept:
        assert kept.restore(state()) is None


def test_a_missing_step_lists_those_there_are(tmp_path):
    with Checkpoints(tmp_path, keep=1) as kept:
        kept.save(1, state(), {})
        with pytest.raises(UserError, match=r"no checkpoint of step 4; it has \[1\]"):
            kept.restore(state(), 4)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_others_stay(tmp_path, damage):
    with Checkpoints(tmp_path, keep=2) as kept:
        for step in (1, 2):
            kept.save(step, state(step), {})
    for path in sorted((tmp_path / "2" / "state").rglob("*")):
        if path.is_file():
            if damage == "truncate":
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            else:
                path.unlink()
    with Checkpoints(tmp_path, keep=2) as kept:
        with pytest.raises(UserError, match=r"2 is damaged.*go on from step 1"):
            kept.restore(state())
        restored = kept.restore(state(), 1)
    np.testing.assert_array_equal(restored.state.tables["users"].values, state(1).tables["users"].values)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with Checkpoints(tmp_path, keep=1) as kept:
        kept.save(1, state(), {})
        other = TrainState(
            jnp.int32(0), {"head": {"projection": jnp.zeros((5, 2))}}, {}, state().tables, state().optimizer
        )
        with pytest.raises(
            UserError, match=r"another model \(trainable.head.projection: saved \(2, 2\), wanted \(5, 2\)\)"
        ):
            kept.restore(other)


def test_a_full_disk_is_one_clear_line_and_the_last_checkpoint_stays(tmp_path):
    # A file-size limit makes the kernel refuse the write for real, as a full disk would.
    code = f"""
        import resource, signal
        from pathlib import Path
        import numpy as np
        from ltrec_jax.errors import UserError
        from ltrec_jax.train.checkpoint import Checkpoints
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        state = {{"w": np.random.default_rng(0).normal(size=(300, 300))}}
        place = Path({str(tmp_path)!r})
        with Checkpoints(place, keep=2) as kept:
            kept.save(1, state, {{}})
        try:
            with Checkpoints(place, keep=2) as kept:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
                kept.save(2, state, {{}})
                kept.wait()
        except UserError as error:
            print("ONE LINE:", error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with Checkpoints(place, keep=2) as kept:
            print("KEPT:", kept.steps, np.array_equal(kept.restore(state).state["w"], state["w"]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert f"ONE LINE: Cannot write {tmp_path}" in done.stdout
    assert "KEPT: [1] True" in done.stdout
