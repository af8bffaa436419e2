import dataclasses

import pytest

from ltrec_jax.train.fit import fit


@pytest.fixture(scope="session")
def bundle(small_split, small_config, tmp_path_factory):
    """A model of the small dataset, saved and loaded: users u0..u119, items i0..i89, i80.. never rated."""
    from ltrec_jax.bundle import Bundle

    config = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, epochs=0, head_epochs=30))
    place = tmp_path_factory.mktemp("serve") / "bundle"
    fit(small_split, config).save(place)
    return Bundle.load(place)


@pytest.fixture
def service(bundle):
    from ltrec_jax.serve.service import Service

    service = Service(bundle)
    yield service
    service.close()
