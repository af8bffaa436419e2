"""Pretraining on film titles: what is it worth on titles that nobody trained on, from a checkpoint and from scratch.

    LTREC_MOVIETWEETINGS=FOLDER python benchmarks/bench_pretrain.py --json benchmarks/results/bench_pretrain.json

The titles of MovieLens-1M, and where `LTREC_MOVIETWEETINGS` names its folder those of MovieTweetings. all-MiniLM-L6-v2
goes on with the default settings; a small BERT begins with random weights and a vocabulary of its own. A twentieth of
the distinct titles chooses the epoch, another twentieth is only reported on, always masked in the same ways: before
(MiniLM comes without a head: a new one guesses at random), after, and for the control in which the head alone learns
for as many steps. Perplexity is pseudo-perplexity, and two
vocabularies have two: those of MiniLM and of the small BERT do not compare. `tokens_per_second` is of the steps that
train (making batches included; the first row of metrics, which compiles, and evaluations apart), `seconds` of the whole
phase. Every run is a process of its own.
"""

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

from harness import arguments, in_child, ran_task, report

TEXTS = {"movielens-1m": "", "movietweetings-100k": "mt_"}
# The epochs are more than it needs: the stopping part ends it.
FROM_SCRATCH = {"from_scratch": True, "learning_rate": 5e-4, "epochs": 60, "patience": 5}
RUNS: dict[str, dict[str, Any]] = {"pretrain": {}, "scratch": FROM_SCRATCH}
QUICK_TEXTS, QUICK_EPOCHS = 200, 1


def pretrained(dataset: str, settings: dict[str, Any], texts: int | None) -> dict[str, Any]:
    """The report of one run on the first `texts` titles (None: all), and how fast it trained."""
    from ltrec_jax import experiment, parallel, storage
    from ltrec_jax.text import corpus
    from ltrec_jax.train.pretrain_config import PretrainConfig
    from ltrec_jax.train.pretraining import PRETRAIN, pretrain
    from ltrec_jax.train.tracking import read_rows

    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    titles = [title for _, chunk in corpus.of(experiment.load(dataset)).chunks() for title in chunk]
    with tempfile.TemporaryDirectory(prefix="bench-pretrain-") as name:
        run = Path(name) / "run"
        found = pretrain(titles[:texts], PretrainConfig(**settings), run).report
        rows = [row for row in read_rows(run / "metrics.jsonl") if row["phase"] == PRETRAIN]
    trained = [row for row in rows if "train_loss" in row]
    steady = trained[1:] or trained
    return found | {
        "epochs_run": trained[-1]["epoch"],
        "tokens_per_second": sum(row["tokens_encoded"] for row in steady) / sum(row["seconds"] for row in steady),
        "validation": [row["validation_loss"] for row in rows if "validation_loss" in row],
    }


def plain(prefix: str, found: dict[str, Any]) -> dict[str, float]:
    """What a headline tells of a run."""
    perplexity = {name: found["held_out"][name]["pseudo_perplexity"] for name in ("before", "head_only", "pretrain")}
    return {
        f"{prefix}_below_head_only": found["below_head_only"],
        f"{prefix}_perplexity_before": perplexity["before"],
        f"{prefix}_perplexity_head_only": perplexity["head_only"],
        f"{prefix}_perplexity_after": perplexity["pretrain"],
        f"{prefix}_seconds": found["seconds"]["pretrain"],
        f"{prefix}_tokens_per_second": found["tokens_per_second"],
    }


def main() -> None:
    given = arguments(str(__doc__).splitlines()[0]).parse_args()
    if ran_task(given, {"pretrained": pretrained}):
        return
    datasets = [name for name in TEXTS if name == "movielens-1m" or os.environ.get("LTREC_MOVIETWEETINGS")]
    headline: dict[str, float] = {}
    details, rows = {}, []
    for dataset, (run, settings) in itertools.product(datasets, RUNS.items()):
        asked, texts = (settings | {"epochs": QUICK_EPOCHS}, QUICK_TEXTS) if given.quick else (settings, None)
        found = in_child(__file__, "pretrained", dataset=dataset, settings=asked, texts=texts)
        prefix = f"{TEXTS[dataset]}{run}"
        headline |= (figures := plain(prefix, found))
        details[prefix] = found
        before, alone, after = (figures[f"{prefix}_perplexity_{name}"] for name in ("before", "head_only", "after"))
        rows.append(
            (
                f"{dataset}, {'a small BERT from scratch' if asked.get('from_scratch') else found['start']['encoder']}",
                f"perplexity of {found['texts']['held_out']} held-out titles {before:,.1f} before, {alone:,.1f} by the "
                f"head alone, {after:,.1f} after epoch {found['epochs']['pretrain']} of {found['epochs_run']:.0f} "
                f"(loss {figures[f'{prefix}_below_head_only']:.0%} below the head alone); "
                f"{figures[f'{prefix}_seconds']:.0f} s, {figures[f'{prefix}_tokens_per_second']:,.0f} tokens/s",
            )
        )
    report(given.json, "pretraining", headline, details, rows)


if __name__ == "__main__":
    main()
