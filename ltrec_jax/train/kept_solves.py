"""The result of a solve on disk, so that a resumed run does not solve again. Arrays alone, whole or not at all.

Out of scope: solving (`solves`), which results are kept (`schedule`).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltrec_jax import plain_settings, processes, storage
from ltrec_jax.bundle import load_tensors, save_tensors
from ltrec_jax.errors import UserError
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.model.words import Words
from ltrec_jax.solve.anchored_model import Anchors
from ltrec_jax.solve.fold_in import UserPrior
from ltrec_jax.solve.user_features import UserFeatures
from ltrec_jax.train.problem import Problem
from ltrec_jax.train.solves import Solved
from ltrec_jax.version import __version__

_KEY, _WORDS, _FEATURES = "key", "words", "features"


def key(problem: Problem, features_IxE: np.ndarray, anchors: Anchors | None) -> bytes:
    """A hash of all that a solve depends on, but for the devices, which change the last bits of a result alone."""
    train = problem.split.train
    arrays = [features_IxE, train.user, train.item, train.rating, problem.profiles, problem.words_IxR]
    if anchors is not None:
        arrays += [anchors.center_E, anchors.z_IxE, anchors.projection_ExD]
    # Attributes of users and items are side information: the fingerprint is of them too.
    about = [__version__, plain_settings.to_dict(problem.config), problem.positive_rating, problem.dataset.fingerprint]
    hashed = (None if array is None else storage.content_hash(np.asarray(array)) for array in arrays)
    return bytes.fromhex(storage.content_hash(*about, *hashed))


def keep(place: Path, key: bytes, solved: Solved) -> None:
    """Write a result under its key, in the place of one under another key."""
    tensors = _flat({name: getattr(solved, name) for name in _parts(Solved) if name != "words"})
    if solved.words is not None:
        # The channel and the catalogue's vectors are the problem's own.
        tensors |= _flat({name: getattr(solved.words, name) for name in ("projection", "text_bias")}, f"{_WORDS}.")
    tensors[_KEY] = np.frombuffer(key, np.uint8)

    def write() -> None:
        with storage.new_file(place) as temporary:
            save_tensors(tensors, temporary)

    processes.first_does(write)


def read(place: Path, key: bytes, problem: Problem) -> Solved | None:
    """The result that `keep` wrote under this key, bit for bit; None without one. A damaged file is a `UserError`."""
    solved = _read(place, key, problem) if place.is_file() else None
    # Several processes solve together or not at all.
    return None if any(processes.anywhere(solved is None)) else solved


def _read(place: Path, key: bytes, problem: Problem) -> Solved | None:
    try:
        tensors = load_tensors(place)
    except UserError as error:
        raise UserError(f"{error} Remove that file to solve anew.") from error
    if tensors.pop(_KEY).tobytes() != key:
        return None
    words = None
    if maps := _below(tensors, _WORDS):
        assert problem.lexical is not None
        assert problem.words_IxR is not None
        words = Words(problem.lexical, maps["projection"], maps["text_bias"], problem.words_IxR)
    head = _below(tensors, "head")
    return Solved(
        vectors=Vectors(**_plain(_below(tensors, "vectors"))),
        item_rows=tensors["item_rows"],
        counts=tensors["counts"],
        anchors=Anchors(**_plain(_below(tensors, "anchors"))),
        head=head,
        prior=_prior(_below(tensors, "prior")),
        words=words,
    )


def _prior(tensors: Mapping[str, np.ndarray]) -> UserPrior:
    features = _below(tensors, _FEATURES)
    own = {name: value for name, value in tensors.items() if not name.startswith(f"{_FEATURES}.")}
    return UserPrior(**_plain(own), features=UserFeatures(**features) if features else None)


def _parts(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, np.ndarray]:
    """Arrays and numbers by dotted name; None has none."""
    found: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            value = {each: getattr(value, each) for each in _parts(value)}
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif value is not None:
            found[before + name] = np.asarray(value)
    return found


def _below(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _plain(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Numbers as Python has them."""
    return {name: value.item() if value.ndim == 0 else value for name, value in tensors.items()}
