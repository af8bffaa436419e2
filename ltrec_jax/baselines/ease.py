"""EASE: every item from every other by one ridge regression in closed form, with item texts as further rows if asked.

    min over B, diag(B) = 0   |X - X B|^2 + text_weight |T^T - T^T B|^2 + l2 |B|^2

X float [U, I] are the likes, T [I, E] the text vectors, their directions from the mean. Sources: Steck (WWW 2019);
text rows: Jeunen, Van Balen & Goethals (UMUAI 2022). The one baseline whose memory grows with the square of the items.
"""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from scipy.linalg import lapack
from typing_extensions import Doc

from ltrec_jax.baselines.item_texts import directions
from ltrec_jax.baselines.scoring import pairs_by_rows, require_known
from ltrec_jax.baselines.training import Training
from ltrec_jax.errors import UserError
from ltrec_jax.types import Array


@dataclasses.dataclass(frozen=True)
class EaseSettings:
    """One ridge regression per item."""

    l2: Annotated[float, Doc("lambda: ridge on the weights between items")] = 250.0
    largest_catalogue: Annotated[int, Doc("more items are refused: memory is 4 bytes times their square")] = 20_000


@dataclasses.dataclass(frozen=True)
class EaseTextSettings(EaseSettings):
    """EASE with item texts as rows beside the users."""

    text_weight: Annotated[float, Doc("weight of the squared error on text rows; 0: plain EASE")] = 100.0


@dataclasses.dataclass(frozen=True)
class Ease:
    """score(u, .) = x_u B: likes float32 [U, I] and weight float32 [I, I] on the device.

    Without text rows a cold item scores 0; so does everything for a user without likes, whom `registry.fit` shows what
    is popular. A `Recommender` that predicts no ratings.
    """

    likes: scipy.sparse.csr_matrix
    weight_IxI: jax.Array

    predicts_ratings: ClassVar[bool] = False

    def score(self, users_B: np.ndarray) -> jax.Array:
        """float32 [B, I]."""
        return _product(self.likes[require_known(users_B, self.likes.shape[0])].toarray(), self.weight_IxI)

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """float32 [P]."""
        return pairs_by_rows(self.score, users_P, items_P)


def fit(train: Training, settings: EaseSettings | None = None) -> Ease:
    """P = (X^T X + text_weight T T^T + l2)^-1, B = I - P / diag(P): one Cholesky inverse in float32, in place.

    `EaseTextSettings` ask for the text rows. A catalogue above `largest_catalogue` is a `UserError`.
    """
    settings = settings or EaseSettings()
    if settings.l2 <= 0:
        raise ValueError(f"l2 must be positive, not {settings.l2}")
    items = train.num_items
    if items > settings.largest_catalogue:
        raise UserError(
            f"EASE inverts a matrix of {items:,} x {items:,} items ({4e-9 * items**2:.1f} GB twice), above its limit "
            f"of {settings.largest_catalogue:,} (largest_catalogue). Leave it out, or raise the limit."
        )
    likes = train.likes
    gram_IxI = np.asfortranarray((likes.T @ likes).toarray())
    if isinstance(settings, EaseTextSettings) and settings.text_weight > 0:
        text_IxE = directions(train.need_texts("ease-text").vectors)
        gram_IxI += np.float32(settings.text_weight) * (text_IxE @ text_IxE.T)
    gram_IxI[np.diag_indices(items)] += np.float32(settings.l2)
    return Ease(likes, jnp.asarray(_weights(gram_IxI)))


def _weights(gram_IxI: np.ndarray) -> np.ndarray:
    """I - P / diag(P) of the inverse P, written over the float32 Gram matrix (its blocks are LAPACK's)."""
    factor, failed = lapack.spotrf(gram_IxI, lower=0, overwrite_a=1, clean=0)
    inverse, failed_too = lapack.spotri(factor, lower=0, overwrite_c=1)
    if failed or failed_too or not np.isfinite(inverse[np.diag_indices(len(inverse))]).all():
        raise UserError("The equations of EASE are singular. Raise its l2.")
    for row in range(1, len(inverse)):
        inverse[row, :row] = inverse[:row, row]
    diagonal_I = inverse[np.diag_indices(len(inverse))].copy()
    inverse /= -diagonal_I[None, :]
    inverse[np.diag_indices(len(inverse))] = 0.0
    return inverse


@jax.jit
def _product(likes_BxI: Array, weight_IxI: jax.Array) -> jax.Array:
    return jnp.dot(likes_BxI, weight_IxI)
