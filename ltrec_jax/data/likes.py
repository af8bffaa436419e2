"""From which rating on an event is a like: one rule for training, baselines, tuning, evaluation and serving.

Out of scope: what becomes of the likes.
"""

import dataclasses

import numpy as np

from ltrec_jax.data.dataset import Dataset

_SHARE_OF_SCALE = 0.75
_LONGEST_SCALE, _FEWEST = 10.0, 0.01
"""What reaches further, with fewer of the events in its top quarter, is taken for counts."""


@dataclasses.dataclass(frozen=True)
class Likes:
    """Events with a rating of at least `rating` are likes; `reason` says in words where that comes from."""

    rating: float
    reason: str


def likes_from(dataset: Dataset, asked: float = 0.0) -> Likes:
    """The least rating of a like. The first of these that there is:

    1. `asked` (the setting `evaluation.positive_rating`), unless 0;
    2. the dataset's own `positive_rating`, as its source or `ltrec prepare` recorded it;
    3. the top quarter of its scale: lowest + 0.75 (highest - lowest), which is 4 of 1..5, 8 of 1..10 and 1 of 0/1, as
       the known sources have it. The scale is the recorded one, else that of all ratings;
    4. but every event where all ratings are equal (clicks), and where ratings are counts (plays, visits): the scale
       starts above 0, goes beyond 10, and less than 1% of the events reach its top quarter.
    """
    if asked:
        return Likes(float(asked), "evaluation.positive_rating")
    own = dataset.info.get("positive_rating")
    if own is not None:
        return Likes(float(own), "the dataset's own")
    ratings = np.asarray(dataset.interactions.rating)
    found = [float(ratings.min()), float(ratings.max())] if len(ratings) else [0.0, 0.0]
    low, high = map(float, dataset.info.get("scale") or found)
    if low == high or found[0] == found[1]:
        return Likes(min(low, found[0]), "every event: all ratings are equal")
    top = low + _SHARE_OF_SCALE * (high - low)
    if low > 0 and high > _LONGEST_SCALE and np.mean(ratings >= top) < _FEWEST:
        return Likes(min(low, found[0]), f"every event: ratings of {low:g} to {high:g} are taken for counts")
    return Likes(top, f"the top quarter of the scale {low:g} to {high:g}; set evaluation.positive_rating to choose")


def positive_rating(dataset: Dataset, asked: float = 0.0) -> float:
    """The least rating of a like, by the rule of `likes_from`."""
    return likes_from(dataset, asked).rating
