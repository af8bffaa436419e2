"""How many pairs and token rows the static shapes of a phase's batches hold, found from a sample of the batches.

Nearly every batch fits. One that does not takes the next rung (`shapes`) and compiles the step anew, which takes as
long as an epoch of MovieLens-100K. Out of scope: the slots of items, which every batch has alike (`batches`), and the
blocks of users' texts (`user_texts`).
"""

import itertools
from collections.abc import Iterable

import numpy as np

_STEPS, _EPOCHS = 256, 8
_PAIRS_MULTIPLE = 64
_MORE_PAIRS, _MORE_ROWS = 1.05, 1.02
"""Pairs of a batch vary with the popularity of its items; token rows hardly, since lengths are dealt evenly."""


def sampled_steps(steps_per_epoch: int) -> list[tuple[int, int]]:
    """Some (epoch, step) of the first epochs, of which there are `steps_per_epoch` each."""
    epochs = min(_EPOCHS, -(-_STEPS // steps_per_epoch))
    steps = np.unique(np.linspace(0, steps_per_epoch - 1, -(-_STEPS // epochs)).astype(int))
    return list(itertools.product(range(epochs), steps.tolist()))


def capacities(needed: Iterable[tuple[int, int]], *, steps_per_epoch: int) -> tuple[int, int]:
    """(pairs, rows) that a slice of a batch has places for, from the (pairs, rows) that those of a sample need.

    Where an epoch is one batch all are alike, and rows are not more than it needs.
    """
    pairs, rows = 1, 1
    for some_pairs, some_rows in needed:
        pairs, rows = max(pairs, some_pairs), max(rows, some_rows)
    more_pairs, more_rows = (_MORE_PAIRS, _MORE_ROWS) if steps_per_epoch > 1 else (1.0, 1.0)
    return -(-int(pairs * more_pairs) // _PAIRS_MULTIPLE) * _PAIRS_MULTIPLE, int(np.ceil(rows * more_rows))
