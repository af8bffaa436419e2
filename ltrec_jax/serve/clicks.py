"""Click-through rates by popularity group from the log of impressions and feedback, corrected for places in the list.

A shown item that was never looked at cannot be clicked. With the chance of being looked at e(r) = r^-eta at rank r
(position bias; Joachims, Swaminathan and Schnabel, WSDM 2017), the inverse-propensity estimate of a group's rate is

    1/n sum_(shown) c / e(r)  =  1/n sum_(clicked) min(r^eta, 20)

the rate that the group would have if every place were looked at as the first one is. Weights are clipped at 20, rates
at 1. Groups are the items' groups when they were shown.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ltrec_jax.serve.journal import FEEDBACK, IMPRESSION

ETA = 1.0
_HIGHEST_WEIGHT = 20.0
_MOST_OPEN = 1_000_000


@dataclasses.dataclass
class GroupClicks:
    """Of one group: items shown, clicks, and clicks weighted by the inverse chance of being looked at."""

    shown: int = 0
    clicks: int = 0
    weighted: float = 0.0

    @property
    def rate(self) -> float | None:
        """Clicks per item shown; None without impressions."""
        return self.clicks / self.shown if self.shown else None

    @property
    def corrected(self) -> float | None:
        """The rate corrected for places; None without impressions."""
        return min(self.weighted / self.shown, 1.0) if self.shown else None


class Clicks:
    """Counts as events come in. A click belongs to the latest showing of that item to that user, and counts once."""

    def __init__(self, eta: float = ETA) -> None:
        self.groups: dict[str, GroupClicks] = {}
        self._eta = eta
        self._open: dict[tuple[str, str], tuple[str, int]] = {}

    def see(self, kind: str, event: Mapping[str, Any]) -> None:
        """Count one event of the log; other kinds than impressions and feedback are passed over."""
        if kind == IMPRESSION:
            for rank, (item, group) in enumerate(zip(event["items"], event["groups"], strict=True), 1):
                self.groups.setdefault(group, GroupClicks()).shown += 1
                self._open.pop((event["user"], item), None)
                self._open[event["user"], item] = (group, rank)
            while len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]
        elif kind == FEEDBACK and event.get("click"):
            found = self._open.pop((event["user"], event["item"]), None)
            if found is not None:
                group, rank = found
                self.groups[group].clicks += 1
                self.groups[group].weighted += min(rank**self._eta, _HIGHEST_WEIGHT)

    @classmethod
    def of(cls, events: Iterable[tuple[str, float, Mapping[str, Any]]], eta: float = ETA) -> "Clicks":
        """The counts of a whole log."""
        clicks = cls(eta)
        for kind, _, event in events:
            clicks.see(kind, event)
        return clicks
