"""The baselines by name: how each is fitted, with which settings, and what it needs. Settings come from TOML tables."""

import dataclasses
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tqdm
from typing_extensions import Doc

from ltrec_jax import plain_settings
from ltrec_jax.baselines import biases, bpr, chance, ease, ials, item_knn, popularity, text_knn
from ltrec_jax.baselines.scoring import PopularToNewcomers
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
    """A way to fit a `Recommender` from `Training` with settings of one dataclass.

    `texts`: it cannot do without. `rates`: it predicts ratings. `by_likes`: it knows a user by the likes alone, so that
    `fit` lets `PopularToNewcomers` answer for users without any.
    """

    fit: Callable[[Training, Any], Recommender]
    settings: type = NoSettings
    texts: bool = False
    rates: bool = False
    by_likes: bool = False


def _fit_biases(train: Training, settings: BiasesSettings) -> Recommender:
    return biases.fit(train.events, train.num_users, train.num_items, **dataclasses.asdict(settings))


BASELINES: Mapping[str, Baseline] = {
    "random": Baseline(lambda train, _: chance.fit(train)),
    "popularity": Baseline(lambda train, _: popularity.fit(train.events, train.num_items)),
    "biases": Baseline(_fit_biases, BiasesSettings, rates=True),
    "itemknn": Baseline(item_knn.fit, item_knn.ItemKnnSettings, by_likes=True),
    "ease": Baseline(ease.fit, ease.EaseSettings, by_likes=True),
    "ease-text": Baseline(ease.fit, ease.EaseTextSettings, texts=True, by_likes=True),
    "ials": Baseline(ials.fit, ials.IalsSettings, by_likes=True),
    "bpr": Baseline(bpr.fit, bpr.BprSettings, by_likes=True),
    "text-knn": Baseline(text_knn.fit, text_knn.TextKnnSettings, texts=True, by_likes=True),
    "tfidf-knn": Baseline(text_knn.fit_words, text_knn.TextKnnSettings, texts=True, by_likes=True),
}
USUAL = ("popularity", "itemknn", "ease", "ials", "text-knn")
"""What a ranking is compared with unless its configuration names others."""


def find(name: str) -> Baseline:
    """The baseline of a name; an unknown one is a `UserError` that lists what exists."""
    if name not in BASELINES:
        raise unknown_name("baseline", name, BASELINES)
    return BASELINES[name]


def fit(name: str, train: Training, settings: Any | None = None) -> Recommender:
    """Fit a baseline by name, with its own settings or its default ones. Users without likes get what is popular."""
    baseline = find(name)
    model = baseline.fit(train, baseline.settings() if settings is None else settings)
    return PopularToNewcomers(model, train.likes) if baseline.by_likes else model


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Fitted baselines by name, the seconds that each took, and the settings that each has."""

    models: dict[str, Recommender]
    seconds: dict[str, dict[str, float]]
    settings: dict[str, Any]


def fit_all(names: Iterable[str], train: Training, settings: Mapping[str, Any] | None = None) -> Fitted:
    """Fit several baselines, each with its entry of `settings` or its default ones. Every name is checked first."""
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        find(name)
    fitted = Fitted({}, {}, {})
    with tqdm.tqdm(wanted, "fitting baselines", unit="model", delay=2.0, leave=False) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            began = time.perf_counter()
            fitted.settings[name] = (settings or {}).get(name) or find(name).settings()
            fitted.models[name] = fit(name, train, fitted.settings[name])
            fitted.seconds[name] = {"fitting": time.perf_counter() - began}
    return fitted


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
        name: plain_settings.from_dict(values, find(name).settings, where=f"baselines.{name}.")
        for name, values in tables.items()
    }


def read_settings(path: Path) -> dict[str, Any]:
    """`settings_from_toml` of a file; one that cannot be read is a `UserError`."""
    try:
        return settings_from_toml(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the settings of baselines {path}: {error}.") from error


def settings_to_toml(settings: Mapping[str, Any]) -> str:
    """TOML tables `[baselines.NAME]` with every field's explanation: `settings_from_toml` gives the same back."""
    return "\n".join(plain_settings.to_toml_table(f"baselines.{name}", each) for name, each in settings.items())
