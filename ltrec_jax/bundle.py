"""What is deployed: one directory that answers for a trained model without the data set it came from.

Out of scope: how it was trained (`train`) and how it answers (`serve`). Loading checks every hash and never unpickles.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import safetensors.numpy
from safetensors import SafetensorError

from ltrec_jax import config as configuration
from ltrec_jax import plain_settings, storage
from ltrec_jax.config import Config
from ltrec_jax.data import columns
from ltrec_jax.data.directory import read_table, write_table
from ltrec_jax.data.history import History
from ltrec_jax.encoder.weights import Encoder, export_weights, load_encoder
from ltrec_jax.errors import UserError
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.model.words import Words
from ltrec_jax.solve.fold_in import UserPrior
from ltrec_jax.solve.user_features import UserFeatures
from ltrec_jax.version import __version__

FORMAT_VERSION = 4
_READABLE = (2, 3, FORMAT_VERSION)
"""Format 2 has no features of users: whoever is folded in there is a user of average features. Up to format 3 a prior
of lists has no vector of newcomers: they start from 0."""
_FEATURES = "features."
_PRIOR, _WORDS = "prior.safetensors", "words.safetensors"
_USER_TEXTS = "user_text_rows.npy"
_ARRAYS = {
    "user_vectors": "vectors",
    "user_biases": "vectors",
    "item_vectors": "vectors",
    "item_biases": "vectors",
    "offsets": "history",
    "items": "history",
    "ratings": "history",
}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained model with everything it needs to answer.

    `users` has `user_id`; `items` has `item_id`, `text` and the catalogue's own columns (row = internal id). `history`
    holds the training events (what a user has seen). `counts` int64[I] are training counts and `group` uint8[I] the
    popularity group (0 head, 1 mid, 2 tail). `head` are the parameters between pooled text and anchor, so that a new
    text can be placed; `text_vectors` float16[I, E] are the pooled texts of the catalogue. `about` tells dataset, split
    and rating scale. `prior` folds new users in where users were solved for (None after gradient training). `words` add
    to the anchors of `head` what the words of a text say (None without a `lexical_share`). `user_text_rows`
    float32 [U, D + 1] are [vector | bias] of users by their texts alone (None where training by gradient read none).
    """

    config: Config
    about: Mapping[str, Any]
    vectors: Vectors
    users: pd.DataFrame
    items: pd.DataFrame
    history: History
    counts: np.ndarray
    group: np.ndarray
    encoder: Encoder
    head: Mapping[str, np.ndarray]
    text_vectors: np.ndarray
    prior: UserPrior | None = None
    words: Words | None = None
    user_text_rows: np.ndarray | None = None

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def predicts_ratings(self) -> bool:
        """Whether scores are on the rating scale; those of a model that only ranks are not."""
        return self.vectors.predicts_ratings

    @property
    def positive_rating(self) -> float:
        """Ratings from here on count as liked."""
        return float(self.config.evaluation.positive_rating or self.about["positive_rating"])

    def score(self, users_B: np.ndarray) -> jax.Array:
        """Scores of all items for a block of internal user ids, float32 [B, I]."""
        return self.vectors.score(users_B)

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """Scores of single pairs of internal ids, float32 [P]."""
        return self.vectors.score_pairs(users_P, items_P)

    def user_index(self, user_id: str) -> int:
        """Internal id of an external user id; an unknown one is a `UserError`."""
        found = np.flatnonzero(self.users[columns.USER_ID].to_numpy() == str(user_id))
        if len(found) == 0:
            examples = ", ".join(repr(x) for x in self.users[columns.USER_ID].head(3))
            raise UserError(f"Unknown user {user_id!r}. The model knows {self.num_users} users, such as {examples}.")
        return int(found[0])

    def save(self, path: Path, *, replace: bool = False) -> None:
        """Write the bundle directory, whole or not at all. Equal models give equal bytes."""
        with storage.new_directory(Path(path), replace=replace) as directory:
            export_weights(self.encoder, directory / "encoder", formats=("safetensors",))
            save_tensors({key: np.asarray(value) for key, value in self.head.items()}, directory / "head.safetensors")
            if self.prior is not None:
                save_tensors(_prior_tensors(self.prior), directory / _PRIOR)
            (directory / "arrays").mkdir()
            if self.words is not None:
                save_tensors(self.words.tensors(), directory / _WORDS)
                np.save(directory / "arrays" / "word_vectors.npy", self.words.vectors, allow_pickle=False)
            if self.user_text_rows is not None:
                np.save(directory / "arrays" / _USER_TEXTS, self.user_text_rows, allow_pickle=False)
            for name, part in _ARRAYS.items():
                np.save(directory / "arrays" / f"{name}.npy", getattr(getattr(self, part), name), allow_pickle=False)
            np.save(directory / "arrays" / "counts.npy", self.counts, allow_pickle=False)
            np.save(directory / "arrays" / "group.npy", self.group, allow_pickle=False)
            np.save(directory / "arrays" / "text_vectors.npy", self.text_vectors, allow_pickle=False)
            write_table(self.users, directory / "users.parquet")
            write_table(self.items, directory / "items.parquet")
            files = sorted(p for p in directory.rglob("*") if p.is_file())
            storage.write_json(
                directory / "bundle.json",
                {
                    "format_version": FORMAT_VERSION,
                    "ltrec_jax": __version__,
                    "about": dict(self.about),
                    "mu": self.vectors.mu,
                    "prior": self.prior and {"explicit": self.prior.explicit, "ridge": self.prior.ridge},
                    "config": plain_settings.to_dict(self.config),
                    "sha256": {p.relative_to(directory).as_posix(): storage.sha256_file(p) for p in files},
                },
            )

    @classmethod
    def load(cls, path: Path) -> "Bundle":
        """Read a bundle and check it. Missing, damaged or foreign files are named in one `UserError`."""
        path = Path(path)
        if not (path / "bundle.json").is_file():
            raise UserError(
                f"{path} is not a bundle: it has no bundle.json. `ltrec train` writes one under RUN/bundle."
            )
        description = storage.read_json(path / "bundle.json")
        if description.get("format_version") not in _READABLE:
            raise UserError(
                f"{path} has bundle format {description.get('format_version')}; this version of ltrec_jax reads "
                f"{', '.join(map(str, _READABLE))}. Train again, or install the version that wrote it "
                f"({description.get('ltrec_jax')})."
            )
        _check_hashes(path, description["sha256"])
        arrays = {name: storage.read_array(path / "arrays" / f"{name}.npy", mapped=True) for name in _ARRAYS}
        prior = _load_prior(path, description.get("prior"))
        encoder = load_encoder(str(path / "encoder"))
        config: Config = configuration.from_dict(description["config"])
        rates = config.train.predicts_ratings if prior is None else prior.explicit
        return cls(
            config=config,
            about=description["about"],
            vectors=_vectors(description["mu"], arrays, rates),
            users=read_table(path / "users.parquet"),
            items=read_table(path / "items.parquet"),
            history=History(*(arrays[name] for name, part in _ARRAYS.items() if part == "history")),
            counts=storage.read_array(path / "arrays" / "counts.npy"),
            group=storage.read_array(path / "arrays" / "group.npy"),
            encoder=encoder,
            head=load_tensors(path / "head.safetensors"),
            prior=prior,
            words=_load_words(path, encoder.config.vocab_size),
            text_vectors=storage.read_array(path / "arrays" / "text_vectors.npy", mapped=True),
            user_text_rows=_load_user_texts(path),
        )


def _prior_tensors(prior: UserPrior) -> dict[str, np.ndarray]:
    found = {field.name: getattr(prior, field.name) for field in dataclasses.fields(prior)}
    if prior.features is not None:
        found |= {_FEATURES + name: part for name, part in vars(prior.features).items()}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def _load_prior(path: Path, plain: Mapping[str, Any] | None) -> UserPrior | None:
    if plain is None:
        return None
    arrays: dict[str, Any] = dict(load_tensors(path / _PRIOR))
    parts = {name.removeprefix(_FEATURES): arrays.pop(name) for name in list(arrays) if name.startswith(_FEATURES)}
    features = UserFeatures(**parts) if parts else None
    return UserPrior(explicit=bool(plain["explicit"]), ridge=float(plain["ridge"]), features=features, **arrays)


def _load_user_texts(path: Path) -> np.ndarray | None:
    stored = path / "arrays" / _USER_TEXTS
    return storage.read_array(stored, mapped=True) if stored.is_file() else None


def _load_words(path: Path, vocab_size: int) -> Words | None:
    if not (path / _WORDS).is_file():
        return None
    vectors_IxR = storage.read_array(path / "arrays" / "word_vectors.npy", mapped=True)
    return Words.of_tensors(load_tensors(path / _WORDS), vectors_IxR, vocab_size)


def save_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write named arrays as one safetensors file. Called inside a directory that is being made."""
    safetensors.numpy.save_file({key: np.asarray(value, order="C") for key, value in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file; a missing or damaged one is a `UserError` that names it."""
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def save_vectors(vectors: Vectors, path: Path) -> None:
    """Write finished vectors alone (a model to compare with), whole or not at all."""
    with storage.new_file(path) as temporary:
        fields = {f.name: np.asarray(getattr(vectors, f.name), np.float32) for f in dataclasses.fields(vectors)}
        save_tensors(fields, temporary)


def load_vectors(path: Path) -> Vectors:
    """Read what `save_vectors` wrote."""
    tensors = load_tensors(path)
    return _vectors(float(tensors.pop("mu")), tensors, bool(tensors.pop("predicts_ratings", True)))


def _vectors(mu: float, arrays: Mapping[str, np.ndarray], predicts_ratings: bool) -> Vectors:
    names = ("user_vectors", "user_biases", "item_vectors", "item_biases")
    p, b_U, q, b_I = (arrays[name] for name in names)
    return Vectors(mu, p, b_U, q, b_I, predicts_ratings)


def _check_hashes(path: Path, expected: Mapping[str, str]) -> None:
    wrong = [
        name
        for name, digest in expected.items()
        if not (path / name).is_file() or storage.sha256_file(path / name) != digest
    ]
    if wrong:
        raise UserError(
            f"The bundle {path} is damaged: {', '.join(wrong)} is missing or changed. Train again or copy it anew."
        )
