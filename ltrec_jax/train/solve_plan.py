"""What an exact solve will hold and how long it may take, from the shapes of its arrays: nothing is solved.

Bytes are those of the arrays that live at once, a lower bound: what compiled programs use beside them comes on top.
Seconds are a guess. A solve is bound by memory: it gathers a row of numbers for every entry of every block, and what
that took on a 2-core Xeon is taken for the machine at hand. Out of scope: the solves (`solves`), showing it
(`commands`).
"""

import dataclasses

import numpy as np

from ltrec_jax.solve import row_solve, side_information
from ltrec_jax.train import solves
from ltrec_jax.train.problem import Problem

GATHERED_PER_SECOND = {"vb": 5e8, "gibbs": 2e8, "whole_data": 2e8}
"""Numbers per second on a 2-core Xeon: an iteration over 10^7 events took 2.9 s (variational Bayes, 55 moments a row),
an alternation 3.7 s (lists, width 32; benchmarks/results/bench_solves.json). A solve of MovieLens-1M at width 384 had
the latter's rate to a third (20 s). Gibbs: that of the normal equations, which it shares with the lists; not measured.
"""
_DOUBLE = 8
_ENTRY = 3 * 4
"""A block has column, value and mask of each entry."""
_SAMPLES, _KEPT = 10, 3
"""Gibbs sweeps whose samples are merged at once, and times the served rank that is kept of them."""


@dataclasses.dataclass(frozen=True)
class SolveCost:
    """`bytes` on one device, at least; `seconds` on a 2-core CPU, to a factor of about two, compilation not counted."""

    bytes: int
    seconds: float


def solve_cost(problem: Problem) -> SolveCost:
    """Of `solves.solve(problem, ...)`."""
    return _of_ratings(problem) if problem.config.schedule.goal == "explicit" else _of_lists(problem)


def side_widths(problem: Problem) -> tuple[int, int]:
    """Columns of side information of users and items, at most: constant ones are left out."""
    dataset, train, asked = problem.dataset, problem.split.train, problem.config.bayes.blocks
    wide = problem.features_IxE.shape[1]
    text = _components(wide, train.item)
    singular = max(min(side_information.SINGULAR_VECTORS, min(dataset.num_users, dataset.num_items) - 2), 0)
    both = {"popularity": 2, "singular": singular}
    of_users, of_items = (
        {name: side_information.attribute(column).shape[1] for name, column in solves.attributes(table).items()}
        for table in (dataset.users, dataset.items)
    )
    of_users |= both | {"history": text}
    of_items |= both | {"text": text}
    if problem.users is not None:
        of_users["profile"] = _components(wide, train.user)
    if problem.words_IxR is not None:
        of_items["words"] = _components(problem.words_IxR.shape[1], train.item)
    # An intercept and the blocks.
    found = (1 + sum(width for name, width in of.items() if not asked or name in asked) for of in (of_users, of_items))
    users_width, items_width = found
    return users_width, items_width


def _components(width: int, known_N: np.ndarray) -> int:
    """Principal components that are kept of vectors of this width, given those of the rows that have events."""
    return min(side_information.TEXT_DIMS, width, len(np.unique(known_N)))


def _of_ratings(problem: Problem) -> SolveCost:
    number = solves.dtype(problem).itemsize
    settings, train, dataset = problem.config.bayes, problem.split.train, problem.dataset
    users, items, wide = dataset.num_users, dataset.num_items, problem.features_IxE.shape[1]
    width = solves.width(problem) + 1
    if settings.method == "vb":
        gathered, passes, numbers = _moments(width), settings.iterations, _variational_numbers(users, items, width)
    else:
        gathered, passes = width, settings.sweeps
        numbers = _gibbs_numbers(users, items, width, settings.gibbs_factors)
    entries = _entries(problem, train.user, users, gathered) + _entries(problem, train.item, items, gathered)
    columns_U, columns_I = side_widths(problem)
    # On the host, on the device, and there once more with zeros for rows without events.
    sides = 3 * number * (users * columns_U + items * columns_I)
    solving = _ENTRY * entries // problem.spread.count + sides + number * numbers
    # Before it: principal components of the texts, five matrices in float64.
    components = 5 * _DOUBLE * items * wide
    seconds = passes * gathered * entries / GATHERED_PER_SECOND[settings.method]
    return SolveCost(4 * items * wide + max(components, solving), seconds)


def _moments(width: int) -> int:
    """Numbers that variational Bayes gathers of a row: E[D D^T] packed, E[b D], E[b^2] (`bayes_variational`)."""
    return width * (width + 3) // 2 + 1


def _variational_numbers(users: int, items: int, width: int) -> int:
    """Means, covariances and noise before and after; then, of the larger side, its sums and six matrices a row."""
    state = 2 * (users + items) * (width + width * width + 3)
    return state + max(users, items) * (4 * _moments(width) + 6 * width * width)


def _gibbs_numbers(users: int, items: int, width: int, factors: int) -> int:
    """Samples and what is kept of them; then the merging of samples, or three matrices a row of the larger side."""
    rows, kept = users + items, min(_KEPT * factors, users, items)
    state = rows * (2 * (width + 1) + _SAMPLES * (width + 1) + 2 * kept)
    merging = 2 * rows * (kept + _SAMPLES * factors)
    return state + max(merging, 3 * max(users, items) * width * width)


def _of_lists(problem: Problem) -> SolveCost:
    number = solves.dtype(problem).itemsize
    settings, dataset = problem.config.whole_data, problem.dataset
    user, item = solves.distinct_likes(problem)
    users, items, width = dataset.num_users, dataset.num_items, solves.width(problem)
    warm, place = np.unique(item, return_inverse=True)
    entries_U = _entries(problem, user, users, width, shortest=32)
    entries_I = _entries(problem, place, len(warm), width, shortest=32)
    # Vectors of both sides, in their own basis and in the one in which they are solved, and the anchors in both; on the
    # host directions of texts, anchors and item vectors. Gramian and its basis. One block with its matrices.
    vectors = number * width * (2 * users + 4 * len(warm) + 3 * items)
    working = number * (3 * width * width + 4 * row_solve.BLOCK_FLOATS)
    held = _ENTRY * (entries_U + entries_I) // problem.spread.count + vectors + working
    gathered = width * (settings.alternations * (entries_U + entries_I) + entries_U)
    wide = problem.features_IxE.shape[1]
    return SolveCost(4 * items * wide + held, gathered / GATHERED_PER_SECOND["whole_data"])


def _entries(problem: Problem, row_N: np.ndarray, num_rows: int, width: int, shortest: int = 8) -> int:
    counts_R = np.bincount(row_N, minlength=num_rows)
    return row_solve.block_entries(counts_R, width=width, shortest=shortest, devices=problem.spread.count)
