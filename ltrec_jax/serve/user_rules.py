"""What a way of training must tell so that its users can move and new ones come: the contract between rules and users.

A rule belongs to a bundle; a row is one user under it. Out of scope: the rules themselves (`squared_users` where users
minimise squared errors, `ranking_users` where they only rank), who rated what (`live_users`).
"""

import dataclasses
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Events:
    """N ratings of one user: item numbers int64 [N], the items' vectors [N, D] and biases [N] now, ratings [N].

    A number that no item has (`NO_NUMBER`) stands for a place where a text stands, and may come several times.
    """

    numbers: np.ndarray
    vectors: np.ndarray
    biases: np.ndarray
    ratings: np.ndarray

    def where(self, mask_N: np.ndarray) -> "Events":
        """Those of a mask."""
        return Events(self.numbers[mask_N], self.vectors[mask_N], self.biases[mask_N], self.ratings[mask_N])


NO_NUMBER = int(np.iinfo(np.int64).max)


class UserRow(Protocol):
    """One user, who takes events; what they come to is asked for with `solve`."""

    def take(self, events: Events) -> None:
        """Items are rated for the first time."""
        ...

    def change(self, event: Events, before: float) -> None:
        """One item that was rated `before` is rated anew."""
        ...

    def solve(self) -> tuple[np.ndarray, float]:
        """(vector [D], bias), float64, after all events so far."""
        ...


class UserRule(Protocol):
    """How users follow from events, given the items of a bundle."""

    def fresh(self) -> UserRow:
        """Somebody without events."""
        ...

    def known(self, user: int, trained: Events, vector_D: np.ndarray, bias: float) -> UserRow:
        """A user of the training by number, with its events and what it made of them."""
        ...

    def around(self, vector_D: np.ndarray, bias: float) -> "UserRule":
        """The rule of a user whose text alone says this: what is penalised is what the user has beside it."""
        ...
