"""Rules that part a dataset's interactions into training, validation and test.

Under every rule an event of validation (test) whose (user, item) pair stands in an earlier part already is left out:
`settings["dropped_repeats"]` counts them. Shares are rounded to whole events, users or items. Out of scope: what a
split is (`dataset`), how leaks are found (`leaks`; `check` is here for convenience).
"""

import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ltrec_jax.data import leaks
from ltrec_jax.data.dataset import Dataset, Split
from ltrec_jax.data.leaks import TEST, TRAIN, UNUSED, VALIDATION, LeakReport, check
from ltrec_jax.errors import UserError, unknown_name

__all__ = ["RULES", "LeakReport", "check", "make", "options_of"]


def official(dataset: Dataset, fold: str = "u1", validation: float = 0.1, seed: int = 0) -> Split:
    """A published fold of the dataset; validation is a random share of its training rows.

    The test rows come from `dataset.info["official_splits"]`, which the source records. `UserError` where there are
    none or no such fold.
    """
    folds = dataset.info.get("official_splits") or {}
    if not folds:
        raise UserError(
            f"Dataset {dataset.name!r} has no official split. Use another rule: {', '.join(sorted(RULES))}."
        )
    if fold not in folds:
        raise unknown_name(f"fold of {dataset.name}", fold, folds)
    _check_share("validation", validation, zero=True)
    first, end = folds[fold]
    part = _all_training(dataset)
    part[first:end] = TEST
    _draw(part, VALIDATION, validation, _generator(seed, "validation"))
    return _split(dataset, f"official/{fold}", part, {"fold": fold, "validation": validation, "seed": seed})


def random(
    dataset: Dataset, test: float = 0.2, validation: float = 0.1, seed: int = 0, per_user: bool = False
) -> Split:
    """A random share of the events is test, a random share of the others validation.

    `per_user` draws the shares within each user (rounded, so a user with few events may have none in test).
    """
    part = _all_training(dataset)
    _draw_test_and_validation(dataset, part, test, validation, seed, per_user)
    settings = {"test": test, "validation": validation, "seed": seed, "per_user": per_user}
    return _split(dataset, "random", part, settings)


def leave_last_out(dataset: Dataset, minimum: int = 3) -> Split:
    """The last event of each user is test, the one before it validation; users with fewer than `minimum` only train.

    Events of equal time keep the order of their rows. The cut lies at another time for each user: what others did
    later is in training, so this measures next-event prediction, not the future (`temporal` does).
    """
    if minimum < 3:
        raise UserError(f"minimum = {minimum} leaves users without training events. It must be at least 3.")
    _require_times(dataset, "leave_last_out")
    user_N = np.asarray(dataset.interactions.user)
    order_N = np.lexsort((dataset.interactions.timestamp, user_N))
    count_U = np.bincount(user_N, minlength=dataset.num_users)
    last_U = np.cumsum(count_U) - 1
    chosen_U = count_U >= minimum
    part = _all_training(dataset)
    part[order_N[last_U[chosen_U]]] = TEST
    part[order_N[last_U[chosen_U] - 1]] = VALIDATION
    return _split(dataset, "leave_last_out", part, {"minimum": minimum})


def temporal(dataset: Dataset, test: float = 0.2, validation: float = 0.1) -> Split:
    """One cut in time for everybody: the last share of the events is test, the last share before it validation.

    Events at the moment of the cut belong to the later part. `settings` holds the cuts, `validation_from` and
    `test_from`, in unix seconds.
    """
    part, settings = _temporal_parts(dataset, test, validation)
    return _split(dataset, "temporal", part, settings)


def temporal_cold_items(
    dataset: Dataset, test: float = 0.2, validation: float = 0.1, share: float = 0.0, seed: int = 0
) -> Split:
    """`temporal`, with the items that first appear after the cut known as cold (`settings["cold_items"]`).

    `share` makes that share of the other items of the test cold too: their events before the cut are left unused.
    """
    _check_share("share", share, zero=True)
    part, settings = _temporal_parts(dataset, test, validation)
    item_N = np.asarray(dataset.interactions.item)
    known = np.intersect1d(item_N[part == TEST], item_N[part != TEST])
    made_cold = _choose(known, share, _generator(seed, "cold"))
    part[np.isin(item_N, made_cold) & (part != TEST)] = UNUSED
    cold, validation_cold = _unseen(item_N, part)
    settings |= {"share": share, "seed": seed, "cold_items": cold, "validation_cold_items": validation_cold}
    return _split(dataset, "temporal_cold_items", part, settings)


def cold_items(
    dataset: Dataset,
    share: float = 0.2,
    test: float = 0.2,
    validation: float = 0.1,
    validation_share: float = 0.0,
    seed: int = 0,
    per_user: bool = False,
) -> Split:
    """A random share of the items that have events is cold: all their events are test, none is training.

    The events of the other (warm) items are split as by `random` with `test` (may be 0) and `validation`.
    `validation_share` holds back that share of the warm items for validation in the same way, so that settings for
    cold items can be chosen without the test. `settings["cold_items"]` and `["validation_cold_items"]` list them.
    """
    codes = np.asarray(dataset.interactions.item)
    return _cold(dataset, "item", codes, share, test, validation, validation_share, seed, per_user)


def cold_users(
    dataset: Dataset,
    share: float = 0.2,
    test: float = 0.0,
    validation: float = 0.1,
    validation_share: float = 0.0,
    seed: int = 0,
    per_user: bool = False,
) -> Split:
    """`cold_items` for users: all events of a random share of the users are test (`settings["cold_users"]`)."""
    codes = np.asarray(dataset.interactions.user)
    return _cold(dataset, "user", codes, share, test, validation, validation_share, seed, per_user)


RULES: dict[str, Callable[..., Split]] = {
    rule.__name__: rule
    for rule in (official, random, leave_last_out, temporal, temporal_cold_items, cold_items, cold_users)
}


def make(dataset: Dataset, rule: str, **options: Any) -> Split:
    """The split by the name of its rule ("official/u2" means `official` with fold u2) and that rule's options.

    Unknown names of rules and options are a `UserError` that lists what exists.
    """
    name, _, fold = rule.partition("/")
    options |= {"fold": fold} if fold else {}
    known = options_of(name)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of split rule {name!r}", option, known)
    return RULES[name](dataset, **options)


def options_of(rule: str) -> tuple[str, ...]:
    """The names of the options that `make` takes for a rule. An unknown rule is a `UserError`."""
    name = rule.partition("/")[0]
    if name not in RULES:
        raise unknown_name("split rule", name, RULES)
    return tuple(inspect.signature(RULES[name]).parameters)[1:]


def _check_share(name: str, value: float, *, zero: bool = False) -> None:
    if not (0.0 < value < 1.0 or (zero and value == 0.0)):
        raise UserError(f"{name} = {value} is not a share between 0 and 1{' (or 0)' if zero else ''}.")


def _require_times(dataset: Dataset, rule: str) -> None:
    times = dataset.interactions.timestamp
    if len(times) == 0 or times.min() == times.max():
        raise UserError(f"Dataset {dataset.name!r} has no timestamps, which split rule {rule!r} needs. Use `random`.")


def _generator(seed: int, stream: str) -> np.random.Generator:
    """Independent random numbers per purpose, so that one more use of chance leaves the others as they were."""
    if seed < 0:
        raise UserError(f"seed = {seed} must not be negative.")
    return np.random.default_rng([seed, zlib.crc32(stream.encode())])


def _all_training(dataset: Dataset) -> np.ndarray:
    return np.full(len(dataset.interactions), TRAIN, np.uint8)


def _choose(values: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(values)[: round(share * len(values))]


def _draw(
    part: np.ndarray, code: int, share: float, generator: np.random.Generator, user_N: np.ndarray | None = None
) -> None:
    """Move a random share of the training rows to part `code`; the share of each user if `user_N` is given."""
    rows = np.flatnonzero(part == TRAIN)
    if user_N is None:
        part[_choose(rows, share, generator)] = code
        return
    rows = generator.permutation(rows)
    rows = rows[np.argsort(user_N[rows], kind="stable")]
    count_U = np.bincount(user_N[rows])
    start_U = np.cumsum(count_U) - count_U
    rank = np.arange(len(rows)) - start_U[user_N[rows]]
    part[rows[rank < np.floor(share * count_U + 0.5)[user_N[rows]]]] = code


def _draw_test_and_validation(
    dataset: Dataset, part: np.ndarray, test: float, validation: float, seed: int, per_user: bool, zero: bool = False
) -> None:
    _check_share("test", test, zero=zero)
    _check_share("validation", validation, zero=True)
    user_N = np.asarray(dataset.interactions.user) if per_user else None
    _draw(part, TEST, test, _generator(seed, "test"), user_N)
    _draw(part, VALIDATION, validation, _generator(seed, "validation"), user_N)


def _temporal_parts(dataset: Dataset, test: float, validation: float) -> tuple[np.ndarray, dict[str, Any]]:
    _check_share("test", test)
    _check_share("validation", validation, zero=True)
    _require_times(dataset, "temporal")
    time_N = np.asarray(dataset.interactions.timestamp)
    part = _all_training(dataset)
    settings: dict[str, Any] = {"test": test, "validation": validation}
    for later, code, share in (("test", TEST, test), ("validation", VALIDATION, validation)):
        rows = np.flatnonzero(part == TRAIN)
        number = round(share * len(rows))
        if number == 0:
            continue
        cut = int(np.partition(time_N[rows], len(rows) - number)[len(rows) - number])
        part[rows[time_N[rows] >= cut]] = code
        settings[f"{later}_from"] = cut
    return part, settings


def _unseen(codes_N: np.ndarray, part: np.ndarray) -> tuple[list[int], list[int]]:
    """Codes of test that no earlier part has; codes of validation that training has not."""
    test = np.setdiff1d(codes_N[part == TEST], codes_N[part < TEST])
    validation = np.setdiff1d(codes_N[part == VALIDATION], codes_N[part == TRAIN])
    return test.tolist(), validation.tolist()


def _cold(
    dataset: Dataset,
    kind: str,
    codes_N: np.ndarray,
    share: float,
    test: float,
    validation: float,
    validation_share: float,
    seed: int,
    per_user: bool,
) -> Split:
    _check_share("share", share)
    _check_share("validation_share", validation_share, zero=True)
    active = np.unique(codes_N)
    cold = np.sort(_choose(active, share, _generator(seed, f"cold {kind}s")))
    if len(cold) == 0:
        raise UserError(f"share = {share} of {len(active)} {kind}s is none. Choose a larger share.")
    warm = np.setdiff1d(active, cold)
    validation_cold = np.sort(_choose(warm, validation_share, _generator(seed, f"validation cold {kind}s")))
    part = _all_training(dataset)
    part[np.isin(codes_N, cold)] = TEST
    part[np.isin(codes_N, validation_cold)] = VALIDATION
    _draw_test_and_validation(dataset, part, test, validation, seed, per_user, zero=True)
    settings = {
        "share": share,
        "test": test,
        "validation": validation,
        "validation_share": validation_share,
        "seed": seed,
        "per_user": per_user,
        f"cold_{kind}s": cold.tolist(),
        f"validation_cold_{kind}s": validation_cold.tolist(),
    }
    return _split(dataset, f"cold_{kind}s", part, settings)


def _split(dataset: Dataset, name: str, part: np.ndarray, settings: Mapping[str, Any]) -> Split:
    """The split of these part codes uint8[N]; `UserError` where nothing is left to learn from or to score."""
    repeats = leaks.repeats(dataset, part)
    part = np.where(repeats, np.uint8(UNUSED), part)
    train, validation, test = (np.flatnonzero(part == code) for code in (TRAIN, VALIDATION, TEST))
    for kind, rows in (("training", train), ("test", test)):
        if len(rows) == 0:
            raise UserError(f"Split {name} of {dataset.name!r} leaves no {kind} events. Choose other shares.")
    return Split(dataset, name, train, validation, test, {**settings, "dropped_repeats": int(repeats.sum())})
