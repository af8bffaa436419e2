import jax
import jax.numpy as jnp
import pytest

from ltrec_jax.train.profiling import profiled


def test_without_steps_it_is_the_step_itself(tmp_path):
    step = object()
    with profiled(step, tmp_path, 0) as traced:
        assert traced is step
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("calls", [3, 6])
def test_a_trace_is_written_also_when_the_phase_ends_early(tmp_path, calls):
    with profiled(jax.jit(lambda x: jnp.sin(x) @ x), tmp_path, 2) as step:
        x = jnp.ones((8, 8))
        for _ in range(calls):
            x = step(x)
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert list(tmp_path.rglob("perfetto_trace.json.gz"))
