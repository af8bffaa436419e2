"""Rules that part a dataset's interactions into training, validation and test; and a check that nothing leaks.

Every rule drops an event from validation (test) whose (user, item) pair stands in an earlier part already, and says
how many in `settings["dropped_repeats"]`. Out of scope: what a split is (`dataset`).
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ltrec_jax.data.dataset import Dataset, Split
from ltrec_jax.errors import UserError, unknown_name


def official(dataset: Dataset, fold: str = "u1", validation: float = 0.1, seed: int = 0) -> Split:
    """A published fold of the dataset; validation is a random share of its training rows.

    The test rows come from `dataset.info["official_splits"]`, which the source records. `UserError` where there are
    none or no such fold.
    """
    folds = dataset.info.get("official_splits") or {}
    if not folds:
        raise UserError(f"Dataset {dataset.name!r} has no official split. Use another rule: {', '.join(RULES)}.")
    if fold not in folds:
        raise unknown_name(f"fold of {dataset.name}", fold, folds)
    _share("validation", validation, zero=True)
    first, end = folds[fold]
    is_test = np.zeros(len(dataset.interactions), bool)
    is_test[first:end] = True
    return _split(
        dataset,
        f"official/{fold}",
        is_test,
        _random_rows(np.flatnonzero(~is_test), validation, _generator(seed, "validation"), len(is_test)),
        {"fold": fold, "validation": validation, "seed": seed},
    )


def _share(name: str, value: float, *, zero: bool = False) -> None:
    if not (0.0 < value < 1.0 or (zero and value == 0.0)):
        raise UserError(f"{name} = {value} is not a share between 0 and 1{' (or 0)' if zero else ''}.")


def _generator(seed: int, stream: str) -> np.random.Generator:
    """Independent random numbers per purpose, so that one more use of chance leaves the others as they were."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode())])


def _random_rows(rows: np.ndarray, share: float, generator: np.random.Generator, length: int) -> np.ndarray:
    """A mask bool[length] of `share` of these rows, rounded to the nearest number."""
    mask = np.zeros(length, bool)
    mask[generator.permutation(rows)[: round(share * len(rows))]] = True
    return mask


def _split(
    dataset: Dataset,
    name: str,
    is_test: np.ndarray,
    is_validation: np.ndarray,
    settings: Mapping[str, Any],
    unused: np.ndarray | None = None,
) -> Split:
    """The split of these masks, without repeated pairs; `UserError` where nothing is left to learn from or to score."""
    is_train = ~(is_test | is_validation)
    if unused is not None:
        is_train &= ~unused
    pairs = _pairs(dataset)
    repeats = 0
    train, validation, test = (np.flatnonzero(mask) for mask in (is_train, is_validation, is_test))
    earlier = pairs[train]
    kept = []
    for rows in (validation, test):
        known = np.isin(pairs[rows], earlier)
        repeats += int(known.sum())
        kept.append(rows[~known])
        earlier = np.concatenate([earlier, pairs[kept[-1]]])
    for part, rows in (("training", train), ("test", kept[1])):
        if len(rows) == 0:
            raise UserError(f"Split {name} of {dataset.name!r} leaves no {part} events. Choose other shares.")
    return Split(dataset, name, train, kept[0], kept[1], {**settings, "dropped_repeats": repeats})


def _pairs(dataset: Dataset) -> np.ndarray:
    """One int64 per event that is equal for equal (user, item)."""
    return dataset.interactions.user.astype(np.int64) * dataset.num_items + dataset.interactions.item


RULES: dict[str, Callable[..., Split]] = {"official": official}
