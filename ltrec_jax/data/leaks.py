"""What of validation or test has leaked into earlier parts of a split.

Out of scope: making splits (`splits`).
"""

import dataclasses

import numpy as np

from ltrec_jax.data.dataset import Dataset, Split
from ltrec_jax.errors import UserError

TRAIN, VALIDATION, TEST, UNUSED = range(4)
"""Codes of the parts, in the order in which they may know of each other."""


@dataclasses.dataclass(frozen=True)
class LeakReport:
    """What `check` found: one sentence for each kind of leak, none if the split is sound."""

    split: str
    findings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    def raise_if_leaky(self) -> None:
        """`UserError` with all findings, if there are any."""
        if self.findings:
            raise UserError(f"Split {self.split} leaks: {'; '.join(self.findings)}.")


def check(split: Split) -> LeakReport:
    """Look for leaks in a split, whoever made it.

    No row in two parts; no (user, item) pair in two parts; no event of a cold item or user in an earlier part; no
    training event at or after the cut of a temporal split. Cold sets and cuts are those in `split.settings`.
    """
    findings: list[str] = []
    rows = (split.train_rows, split.validation_rows, split.test_rows)
    for name, first, second in (("validation", 0, 1), ("test", 0, 2), ("validation and test", 1, 2)):
        shared = _number_shared(rows[first], rows[second], len(split.dataset.interactions))
        if shared:
            findings.append(f"{shared} rows stand in {'both ' if first else 'training and '}{name}")
    part = np.full(len(split.dataset.interactions), UNUSED, np.uint8)
    for code in (TEST, VALIDATION, TRAIN):
        part[rows[code]] = code
    repeated = int(repeats(split.dataset, part).sum())
    if repeated:
        findings.append(f"{repeated} events repeat a (user, item) pair of an earlier part")
    findings += _cold_leaks(split, part) + _late_events(split, part)
    return LeakReport(split.name, tuple(findings))


def _number_shared(first: np.ndarray, second: np.ndarray, length: int) -> int:
    inside = np.zeros(length, bool)
    inside[first] = True
    return int(inside[second].sum())


def _cold_leaks(split: Split, part: np.ndarray) -> list[str]:
    findings = []
    for kind in ("item", "user"):
        codes = getattr(split.dataset.interactions, kind)
        for prefix, of, before in (("", "test", TEST), ("validation_", "validation", VALIDATION)):
            cold = split.settings.get(f"{prefix}cold_{kind}s", [])
            if not np.any(part == before):
                continue  # after `with_validation_in_train` its cold items are known, as they should be
            leaks = int(np.isin(codes[part < before], cold).sum())
            if leaks:
                findings.append(f"{leaks} events of cold {kind}s of {of} stand in an earlier part")
    return findings


def _late_events(split: Split, part: np.ndarray) -> list[str]:
    findings = []
    for later, code in (("validation", VALIDATION), ("test", TEST)):
        cut = split.settings.get(f"{later}_from")
        if cut is None or not np.any(part == code):
            continue
        late = int((split.dataset.interactions.timestamp[part < code] >= cut).sum())
        if late:
            findings.append(f"{late} events before {later} are not earlier than its cut at {cut}")
    return findings


def repeats(dataset: Dataset, part: np.ndarray) -> np.ndarray:
    """A mask bool[N] of used rows whose (user, item) pair stands in an earlier part.

    One sort finds the pairs that occur more than once; only their rows are looked at again.
    """
    pair_N = np.asarray(dataset.interactions.user).astype(np.int64) * dataset.num_items + dataset.interactions.item
    ordered = np.sort(pair_N)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    repeats = np.zeros(len(pair_N), bool)
    if len(twice) == 0:
        return repeats
    position = np.minimum(np.searchsorted(twice, pair_N), len(twice) - 1)
    rows = np.flatnonzero((twice[position] == pair_N) & (part != UNUSED))
    earliest = np.full(len(twice), UNUSED, np.uint8)
    np.minimum.at(earliest, position[rows], part[rows])
    repeats[rows] = part[rows] > earliest[position[rows]]
    return repeats
