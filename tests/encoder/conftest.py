"""Stored activations of PyTorch's and Flax's own BERT, for the tests of this room."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ltrec_jax.encoder.weights import Encoder, load_encoder

FIXTURES = Path(__file__).parents[1] / "fixtures" / "encoder"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tiny checkpoint with what its own framework computed from it."""

    directory: Path
    encoder: Encoder
    expected: dict[str, np.ndarray]

    @property
    def ids(self) -> np.ndarray:
        return self.expected["ids"].astype(np.int32)

    @property
    def mask(self) -> np.ndarray:
        return self.expected["mask"].astype(np.int32)

    @property
    def real(self) -> np.ndarray:
        return self.mask == 1


def read_stored(name: str) -> Stored:
    directory = FIXTURES / name
    if (directory / "expected.npz").is_file():
        with np.load(directory / "expected.npz") as archive:
            expected = dict(archive)
    else:
        expected = safetensors.numpy.load_file(directory / "expected.safetensors")
    return Stored(directory, load_encoder(directory), expected)


@pytest.fixture(scope="session", params=["bert", "roberta", "distilbert"])
def torch_stored(request: pytest.FixtureRequest) -> Stored:
    return read_stored(request.param)


@pytest.fixture(scope="session", params=["flax_bert", "flax_bert_heads", "flax_roberta", "flax_distilbert"])
def flax_stored(request: pytest.FixtureRequest) -> Stored:
    return read_stored(request.param)


@pytest.fixture(scope="session")
def tiny_bert() -> Stored:
    return read_stored("bert")


@pytest.fixture(scope="session")
def encoder_fixtures() -> Path:
    return FIXTURES
