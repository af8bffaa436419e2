"""The baselines by name: how each is fitted, with which settings, and what it needs. Settings come from TOML tables."""

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from typing_extensions import Doc

from ltrec_jax import config as configuration
from ltrec_jax.baselines import biases, bpr, chance, ease, ials, item_knn, popularity, text_knn
from ltrec_jax.baselines.training import Training
from ltrec_jax.errors import UserError, unknown_name
from ltrec_jax.types import Recommender


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Nothing to choose."""


@dataclasses.dataclass(frozen=True)
class BiasesSettings:
    """How fast few events pull towards the mean."""

    user_damping: Annotated[float, Doc("events of mean rating that every user is given")] = 5.0
    item_damping: Annotated[float, Doc("events of mean rating that every item is given")] = 3.0


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A way to fit a `Recommender` from `Training` with settings of one dataclass. `texts`: it cannot do without."""

    fit: Callable[[Training, Any], Recommender]
    settings: type = NoSettings
    texts: bool = False
    rates: bool = False


def _fit_biases(train: Training, settings: BiasesSettings) -> Recommender:
    return biases.fit(train.events, train.num_users, train.num_items, **dataclasses.asdict(settings))


BASELINES: Mapping[str, Baseline] = {
    "random": Baseline(lambda train, _: chance.fit(train)),
    "popularity": Baseline(lambda train, _: popularity.fit(train.events, train.num_items)),
    "biases": Baseline(_fit_biases, BiasesSettings, rates=True),
    "itemknn": Baseline(item_knn.fit, item_knn.ItemKnnSettings),
    "ease": Baseline(ease.fit, ease.EaseSettings),
    "ease-text": Baseline(ease.fit, ease.EaseTextSettings, texts=True),
    "ials": Baseline(ials.fit, ials.IalsSettings),
    "bpr": Baseline(bpr.fit, bpr.BprSettings),
    "text-knn": Baseline(text_knn.fit, text_knn.TextKnnSettings, texts=True),
    "tfidf-knn": Baseline(text_knn.fit_words, text_knn.TextKnnSettings, texts=True),
}
USUAL = ("popularity", "itemknn", "ease", "ials", "text-knn")
"""What a ranking is compared with unless its configuration names others."""


def find(name: str) -> Baseline:
    """The baseline of a name; an unknown one is a `UserError` that lists what exists."""
    if name not in BASELINES:
        raise unknown_name("baseline", name, BASELINES)
    return BASELINES[name]


def fit(name: str, train: Training, settings: Any | None = None) -> Recommender:
    """Fit a baseline by name, with its own settings or its default ones."""
    baseline = find(name)
    return baseline.fit(train, baseline.settings() if settings is None else settings)


def affordable(names: Iterable[str], train: Training) -> list[str]:
    """The names without those whose memory this catalogue is too large for, or whose texts are missing."""
    limit = ease.EaseSettings().largest_catalogue
    too_large = {"ease", "ease-text"} if train.num_items > limit else set()
    return [name for name in names if name not in too_large and (train.texts is not None or not find(name).texts)]


def settings_from_toml(text: str, source: str) -> dict[str, Any]:
    """Settings by baseline name from tables `[baselines.NAME]`; unknown names and wrong types are named."""
    try:
        tables = tomllib.loads(text).get("baselines", {})
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source} is not valid TOML: {error}.") from error
    if not isinstance(tables, dict) or not tables:
        raise UserError(f"{source} has no table [baselines.NAME]. `ltrec tune` writes such files.")
    return {
        name: configuration.from_dict(values, find(name).settings, where=f"baselines.{name}.")
        for name, values in tables.items()
    }


def settings_to_toml(settings: Mapping[str, Any]) -> str:
    """TOML tables `[baselines.NAME]` with every field's explanation: `settings_from_toml` gives the same back."""
    return "\n".join(configuration.to_toml_table(f"baselines.{name}", each) for name, each in settings.items())
