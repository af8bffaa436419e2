"""ltrec_jax: long-tail recommendation with large-language-model encoders, in JAX and Flax.

    import ltrec_jax as lt

    dataset = lt.load("movielens-100k")
    split = lt.split(dataset, "official", fold="u1")
    model = lt.fit(split, lt.Config())
    print(lt.evaluate(model, split).table())
    print(lt.recommend(model, "42", k=10))

Names are imported when they are first used, so that `ltrec --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ltrec_jax.version import __version__

if TYPE_CHECKING:
    from ltrec_jax.bundle import Bundle as Bundle
    from ltrec_jax.config import Config as Config
    from ltrec_jax.data.dataset import Dataset as Dataset
    from ltrec_jax.data.dataset import Interactions as Interactions
    from ltrec_jax.data.dataset import Split as Split
    from ltrec_jax.data.prepare import from_pandas as from_pandas
    from ltrec_jax.data.prepare import prepare as prepare
    from ltrec_jax.data.sources import available as available
    from ltrec_jax.data.splits import make as split  # noqa: F401
    from ltrec_jax.encoder.catalogue import encode_catalogue as encode_catalogue
    from ltrec_jax.encoder.shards import encode_to_disk as encode_to_disk
    from ltrec_jax.encoder.shards import open_encoded as open_encoded
    from ltrec_jax.encoder.weights import export_weights as export_weights
    from ltrec_jax.encoder.weights import load_encoder as load_encoder
    from ltrec_jax.errors import UserError as UserError
    from ltrec_jax.evaluation.report import Report as Report
    from ltrec_jax.experiment import compare as compare
    from ltrec_jax.experiment import evaluate as evaluate
    from ltrec_jax.experiment import load as load
    from ltrec_jax.serve.service import Query as Query
    from ltrec_jax.serve.service import Recommendation as Recommendation
    from ltrec_jax.serve.service import Service as Service
    from ltrec_jax.serve.service import recommend as recommend
    from ltrec_jax.train.fit import fit as fit
    from ltrec_jax.train.pretrain_config import PretrainConfig as PretrainConfig
    from ltrec_jax.train.pretraining import pretrain as pretrain
    from ltrec_jax.tuning.tune import tune as tune

_HOMES = {
    "Bundle": ("ltrec_jax.bundle", "Bundle"),
    "Config": ("ltrec_jax.config", "Config"),
    "Dataset": ("ltrec_jax.data.dataset", "Dataset"),
    "Interactions": ("ltrec_jax.data.dataset", "Interactions"),
    "PretrainConfig": ("ltrec_jax.train.pretrain_config", "PretrainConfig"),
    "Query": ("ltrec_jax.serve.service", "Query"),
    "Recommendation": ("ltrec_jax.serve.service", "Recommendation"),
    "Report": ("ltrec_jax.evaluation.report", "Report"),
    "Service": ("ltrec_jax.serve.service", "Service"),
    "Split": ("ltrec_jax.data.dataset", "Split"),
    "UserError": ("ltrec_jax.errors", "UserError"),
    "available": ("ltrec_jax.data.sources", "available"),
    "compare": ("ltrec_jax.experiment", "compare"),
    "encode_catalogue": ("ltrec_jax.encoder.catalogue", "encode_catalogue"),
    "encode_to_disk": ("ltrec_jax.encoder.shards", "encode_to_disk"),
    "evaluate": ("ltrec_jax.experiment", "evaluate"),
    "export_weights": ("ltrec_jax.encoder.weights", "export_weights"),
    "fit": ("ltrec_jax.train.fit", "fit"),
    "from_pandas": ("ltrec_jax.data.prepare", "from_pandas"),
    "load": ("ltrec_jax.experiment", "load"),
    "load_encoder": ("ltrec_jax.encoder.weights", "load_encoder"),
    "open_encoded": ("ltrec_jax.encoder.shards", "open_encoded"),
    "prepare": ("ltrec_jax.data.prepare", "prepare"),
    "pretrain": ("ltrec_jax.train.pretraining", "pretrain"),
    "recommend": ("ltrec_jax.serve.service", "recommend"),
    "split": ("ltrec_jax.data.splits", "make"),
    "tune": ("ltrec_jax.tuning.tune", "tune"),
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
