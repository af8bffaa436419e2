"""What tests of training share."""

import dataclasses

import pytest

from ltrec_jax.encoder.weights import export_weights, load_encoder


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
