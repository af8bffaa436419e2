"""What tests of training share."""

import dataclasses

import jax
import pytest

from ltrec_jax.encoder.weights import export_weights, load_encoder
from ltrec_jax.train import phases


@pytest.fixture(scope="session")
def shallow_encoder(tiny_encoder, tmp_path_factory):
    """The first layer of the tiny encoder: half as much to compile."""
    encoder = load_encoder(tiny_encoder)
    params = {**encoder.params, "encoder": {"layer": {"0": encoder.params["encoder"]["layer"]["0"]}}}
    shallow = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, num_layers=1), params=params)
    directory = tmp_path_factory.mktemp("shallow") / "encoder"
    export_weights(shallow, directory)
    return directory


@pytest.fixture(scope="session")
def prepare():
    """A function from a problem and "head" or "encoder" to that phase as it is from its beginning, over two epochs."""
    return _prepare


@pytest.fixture(scope="session")
def run_steps():
    """A function from a problem and a phase's name to the state after its first steps, and the metrics of each."""
    return _run_steps


def _prepare(problem, phase):
    if phase == phases.HEAD:
        return phases.prepare_head(problem, 2, patience=0)
    assert phase == phases.ENCODER
    return phases.prepare_encoder(problem, 2, patience=0, start=None)


def _run_steps(problem, phase, steps=4):
    prepared = _prepare(problem, phase)
    state, key, metrics = prepared.state, problem.spread.replicate(jax.random.key(0)), []
    for number in range(steps):
        batch = prepared.source.batch(*divmod(number, prepared.source.steps_per_epoch))
        state, row = prepared.step(state, problem.spread.shard(batch), key)
        metrics.append(jax.device_get(row))
    return jax.device_get(state), metrics


@pytest.fixture(scope="session")
def scalars():
    """(name, step) -> values in the event files of a folder, in the order written; and the steps purged from."""
    return _scalars


def _scalars(directory):
    from tensorboardX.proto import event_pb2

    found, purged = {}, []
    for path in sorted(directory.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == event_pb2.SessionLog.START and event.step:
                purged.append(event.step)
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found, purged
