"""Tuning from end to end: a split and names of models in, a directory with the best settings as TOML out."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ltrec_jax import plain_settings, storage
from ltrec_jax.baselines import registry
from ltrec_jax.baselines.item_texts import ItemTexts, item_texts
from ltrec_jax.config import Config
from ltrec_jax.data.dataset import Split
from ltrec_jax.data.likes import positive_rating
from ltrec_jax.evaluation.results import SUM
from ltrec_jax.tuning.candidates import Candidate, after, candidates
from ltrec_jax.tuning.judge import CUTOFF, OVERALL, RANKED, RMSE, judge
from ltrec_jax.tuning.search import Tuned, search

STUDY, BASELINES = "study.db", "baselines.toml"


def tune(
    split: Split,
    config: Config,
    models: Sequence[str],
    out: Path,
    *,
    trials: int = 20,
    timeout: float | None = None,
    objective: str = "",
    texts: ItemTexts | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Tuned]:
    """Search settings of each model on the split's validation part, with one budget for all; go on if `out` has some.

    `objective`: rmse, overall, warm, tail, cold (nDCG@20) or sum (of warm, tail and cold); "" is rmse for models that
    predict ratings and sum for the others. `earlier`: by the name of a model, settings that were chosen before (of a
    baseline, or a `Config`); a new search tries them right after the defaults. `out` gets `study.db`, `trials.json`,
    and the best settings: baselines in `baselines.toml`, each own model in a whole configuration of its own. The test
    part is never looked at.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    positive = positive_rating(split.dataset, config.evaluation.positive_rating)
    judged = judge(split, positive)
    wanted = candidates(models, split, config, positive, texts or item_texts(split.dataset, config))
    about = {
        "dataset": split.dataset.fingerprint,
        "split": split.name,
        "split settings": json.loads(json.dumps(dict(split.settings))),
        "encoder": config.encoder.name,
        "positive rating": positive,
    }
    found: dict[str, Tuned] = {}
    for candidate in wanted:
        if earlier and candidate.name in earlier:
            candidate = after(candidate, earlier[candidate.name])
        found[candidate.name] = search(
            candidate,
            judged,
            objective=objective or (RMSE if candidate.rates else SUM),
            trials=trials,
            timeout=timeout,
            seed=config.seed,
            study=out / STUDY,
            about=about | dict(candidate.about),
        )
        _write(out, candidate, found[candidate.name])
    return found


def trials_table(tuned: Tuned, rows: int = 5) -> Table:
    """The best trials of one model."""
    sign = 1.0 if tuned.objective == RMSE else -1.0
    ranked = sorted(tuned.trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))
    shown = [part for part in (RMSE, OVERALL, *RANKED, SUM) if part in tuned.best.figures]
    title = f"{tuned.name}: best of {len(tuned.trials)} trials by {tuned.objective} (validation, nDCG@{CUTOFF})"
    table = Table("trial", *tuned.best.values, *shown, "seconds", title=title)
    for trial in ranked[:rows]:
        settings = [
            f"{trial.values[name]:.4g}" if isinstance(trial.values[name], float) else str(trial.values[name])
            for name in tuned.best.values
        ]
        figures = [f"{trial.figures[part]:.4f}" if part in trial.figures else "–" for part in shown]
        table.add_row(str(trial.number), *settings, *figures, f"{trial.seconds:.1f}")
    return table


def _write(out: Path, candidate: Candidate, tuned: Tuned) -> None:
    """Keep what was found for a model beside what is there of others."""
    settings, baselines, trials = candidate.settings(tuned.best.values), out / BASELINES, out / "trials.json"
    if isinstance(settings, Config):
        storage.write_text(out / f"{tuned.name}.toml", plain_settings.to_toml(settings))
    else:
        known = registry.read_settings(baselines) if baselines.is_file() else {}
        storage.write_text(baselines, registry.settings_to_toml(known | {tuned.name: settings}))
    others = storage.read_json(trials) if trials.is_file() else {}
    storage.write_json(trials, others | {tuned.name: dataclasses.asdict(tuned)})
