"""The budgeted search: the same number of trials, time and seed for every model, kept in SQLite so that it goes on.

Optuna's tree-structured Parzen estimator proposes; a new search of two trials and more tries the defaults first and
settings chosen earlier next, so what is chosen is never worse than they are on validation. Each proposal is drawn from
a seed of its own: resumed or not, the same trials come in the same order. Out of scope: what a model is (`candidates`),
what is measured (`judge`).
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from ltrec_jax.errors import StoppedError, UserError
from ltrec_jax.tuning.candidates import Candidate
from ltrec_jax.tuning.judge import RMSE, Judge
from ltrec_jax.tuning.spaces import OneOf, Space, Whole

_RANDOM_TRIALS = 6
"""Drawn at random before proposals lean on what was found."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting tried: its value of the objective (None: the fit failed, `error` says why) and all its figures."""

    number: int
    values: Mapping[str, Any]
    value: float | None
    figures: Mapping[str, float]
    seconds: float
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a search found for one model: its best trial, and all of them in order.

    `about`: the data, split, seed and whatever else the trials' values hang on.
    """

    name: str
    objective: str
    best: Trial
    trials: tuple[Trial, ...]
    about: Mapping[str, Any]


def search(
    candidate: Candidate,
    judge: Judge,
    *,
    objective: str,
    trials: int,
    timeout: float | None,
    seed: int,
    study: Path,
    about: Mapping[str, Any],
) -> Tuned:
    """Try settings until `trials` are done or `timeout` seconds have passed; go on where an earlier search stopped.

    `study` is the SQLite file; one study in it belongs to one model. `about` says what is searched on: a study of other
    data, split, seed or objective is refused (`UserError`). A setting whose fit is a `UserError` counts as a trial that
    failed; when all did, the last error is raised. A space of fewer points than trials is tried whole.
    """
    optuna = _optuna()
    kept = optuna.storages.RDBStorage(f"sqlite:///{study}")
    try:
        direction = "minimize" if objective == RMSE else "maximize"
        found = optuna.create_study(study_name=candidate.name, storage=kept, direction=direction, load_if_exists=True)
        searched_on = dict(about) | {"objective": objective, "seed": seed}
        _require_same(found, searched_on, study)
        first, every_point = _first(candidate, trials)
        _prepare(found, first, optuna)
        wanted, began = len(first) if every_point else trials, time.monotonic()
        # The defaults and the settings that were chosen earlier are tried whatever it takes.
        given = min(1 if candidate.earlier is None else 2, wanted)
        with tqdm.tqdm(desc=f"tuning {candidate.name}", total=wanted, unit="trial", leave=False) as bar:
            while (done := len(_finished(found))) < wanted:
                if timeout is not None and done >= given and time.monotonic() - began >= timeout:
                    break
                bar.update(done - bar.n)
                found.sampler = optuna.samplers.TPESampler(n_startup_trials=_RANDOM_TRIALS, seed=seed * 100_003 + done)
                _try(found, candidate, judge, objective, optuna)
        listed = tuple(_read(trial, number) for number, trial in enumerate(_finished(found)))
    finally:
        kept.remove_session()
        kept.engine.dispose()
    usable = [trial for trial in listed if trial.value is not None]
    if not usable:
        raise UserError(f"Every setting of {candidate.name} failed. The last: {listed[-1].error}")
    sign = 1.0 if objective == RMSE else -1.0
    best = min(usable, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    return Tuned(candidate.name, objective, best, listed, searched_on)


def _try(study: Any, candidate: Candidate, judge: Judge, objective: str, optuna: Any) -> None:
    trial = study.ask()
    values, began = _suggest(trial, candidate.space), time.perf_counter()
    known = next((one for one in _finished(study) if one.params == trial.params and one.value is not None), None)
    if known is not None:  # Fits are deterministic.
        trial.set_user_attr("figures", known.user_attrs["figures"])
        study.tell(trial, known.value)
        return
    try:
        figures = judge.figures(candidate.fit(values), name=candidate.name, rates=candidate.rates)
        value = judge.value(figures, objective)
        if not math.isfinite(value):
            raise UserError(f"{objective} is {value}.")
    except StoppedError:
        # Nothing is known of this trial: whoever goes on with the search makes it again.
        raise
    except UserError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    trial.set_user_attr("figures", figures)
    trial.set_user_attr("seconds", time.perf_counter() - began)
    study.tell(trial, value)


def _suggest(trial: Any, space: Space) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, allowed in space.items():
        if isinstance(allowed, OneOf):
            values[name] = trial.suggest_categorical(name, allowed.values)
        elif isinstance(allowed, Whole):
            values[name] = trial.suggest_int(name, allowed.low, allowed.high, log=allowed.log)
        else:
            values[name] = trial.suggest_float(name, allowed.low, allowed.high, log=allowed.log)
    return values


def _finished(study: Any) -> list[Any]:
    """Trials that have a value or failed by themselves; not those that were cut off."""
    return [t for t in study.get_trials(deepcopy=False) if t.value is not None or "error" in t.user_attrs]


def _prepare(study: Any, first: list[dict[str, Any]], optuna: Any) -> None:
    """Let the first trials be these; on going on, repeat what a killed search left half done."""
    states, trials = optuna.trial.TrialState, study.get_trials(deepcopy=False)
    cut_off = [trial for trial in trials if trial.state == states.RUNNING]
    for trial in cut_off:
        study.tell(trial.number, state=states.FAIL)
        study.enqueue_trial(trial.params or trial.system_attrs.get("fixed_params", {}))
    if not trials:
        for values in first:
            study.enqueue_trial(values)


def _first(candidate: Candidate, trials: int) -> tuple[list[dict[str, Any]], bool]:
    """The defaults and the earlier values, in a space of few enough points all the others too; whether it is one."""
    given = [candidate.defaults] if candidate.earlier is None else [candidate.defaults, candidate.earlier]
    points = [_inside(candidate.space, values) for values in given]
    lists = [allowed.values for allowed in candidate.space.values() if isinstance(allowed, OneOf)]
    every_point = len(lists) == len(candidate.space) and math.prod(map(len, lists)) <= trials
    if every_point:
        points += [dict(zip(candidate.space, values, strict=True)) for values in itertools.product(*lists)]
    return [point for number, point in enumerate(points) if point not in points[:number]], every_point


def _inside(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, moved to the nearest ones that the space has."""
    moved = {}
    for name, value in values.items():
        allowed = space[name]
        if isinstance(allowed, OneOf):
            moved[name] = value if value in allowed.values else allowed.values[0]
        else:
            moved[name] = type(value)(np.clip(value, allowed.low, allowed.high))
    return moved


def _require_same(study: Any, about: dict[str, Any], path: Path) -> None:
    earlier = study.user_attrs.get("about")
    if earlier is None:
        study.set_user_attr("about", about)
    elif earlier != about:
        changed = sorted(key for key in earlier.keys() | about.keys() if earlier.get(key) != about.get(key))
        raise UserError(
            f"{path} holds a search with another {', '.join(changed)}. Choose another directory with --out."
        )


def _read(trial: Any, number: int) -> Trial:
    attributes = trial.user_attrs
    return Trial(
        number,
        dict(trial.params),
        trial.value,
        attributes.get("figures", {}),
        attributes.get("seconds", 0.0),
        attributes.get("error", ""),
    )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "Tuning needs optuna, which is not installed. Install the extra: pip install 'ltrec-jax[tune]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
