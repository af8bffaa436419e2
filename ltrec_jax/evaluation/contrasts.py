"""Examples that can be read: tail items that one model places for a user who wanted them and another one misses."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ltrec_jax.data import columns
from ltrec_jax.evaluation.exam import ALL, Answers, Exam
from ltrec_jax.evaluation.results import Contrast

_LIKED = 3
_TITLES = ("title", "name", columns.TEXT)


def contrasts(
    asked: Exam,
    answers: Mapping[str, Answers],
    found_by: str,
    missed_by: str,
    tail_I: np.ndarray,
    user_names: Sequence[str],
    item_names: Sequence[str],
    *,
    most: int = 3,
) -> list[Contrast]:
    """Up to `most` targets in the tail (bool [I]) that the first model lists and the second one does not.

    The best places first, then the rarest items; every user and every item once. `liked`: the best rated items that
    the user had, the rarest first among equals.
    """
    items_VxK, hits_VxK = answers[found_by].lists[ALL].items, answers[found_by].lists[ALL].hits
    rows, ranks = np.nonzero(hits_VxK & tail_I[items_VxK])
    items = items_VxK[rows, ranks]
    missed = ~(answers[missed_by].lists[ALL].items[rows] == items[:, None]).any(1)
    rows, ranks, items = rows[missed], ranks[missed], items[missed]
    found: list[Contrast] = []
    used_users: set[int] = set()
    used_items: set[int] = set()
    for place in np.lexsort((rows, asked.train_count_I[items], ranks)):
        row, item = int(rows[place]), int(items[place])
        if row in used_users or item in used_items:
            continue
        used_users.add(row)
        used_items.add(item)
        user = int(asked.wanted.users[row])
        found.append(
            Contrast(
                user=user_names[user],
                liked=tuple(item_names[each] for each in _liked(asked, user)),
                item=item_names[item],
                train_events=int(asked.train_count_I[item]),
                found_by=found_by,
                rank=int(ranks[place]) + 1,
                missed_by=missed_by,
                depth=items_VxK.shape[1],
            )
        )
        if len(found) == most:
            break
    return found


def readable(items: pd.DataFrame) -> list[str]:
    """A name for each item: its title (with the year, if there is one), else its name, text or id."""
    column = next((name for name in _TITLES if name in items.columns), columns.ITEM_ID)
    names = items[column].fillna(items[columns.ITEM_ID]).astype(str)
    if column == "title" and "year" in items.columns:
        year = items["year"].fillna("").astype(str)
        names = names.where(year == "", names + " (" + year + ")")
    return names.tolist()


def _liked(asked: Exam, user: int) -> np.ndarray:
    items, ratings = asked.seen.of(user)
    return items[np.lexsort((asked.train_count_I[items], -ratings))][:_LIKED]
