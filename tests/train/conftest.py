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
