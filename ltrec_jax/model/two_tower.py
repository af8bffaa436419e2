"""score(u, i) = mu + b_u + b_i + <p_u, q_i>: pure functions, and the recommender over finished vectors.

    q_i = anchor_i + g_i v_i        b_i = text_bias_i + g_i c_i

and p_u, b_u are free, or where users have texts

    p_u = anchor_u + v_u            b_u = text_bias_u + c_u         v_u = 0, c_u = 0 without training events

Rows of the tables hold vector and bias side by side, [.., D + 1], so that one gather and one update serve both.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ltrec_jax.types import Array

_LARGE_CATALOGUE = 100_000


def item_vectors(
    anchor_KxD: jax.Array, text_bias_K: jax.Array, rows: jax.Array, gate_K: Array
) -> tuple[jax.Array, jax.Array]:
    """(q_KxD, b_K) from the text part and the gated residual rows [K, D + 1]. Shapes are checked, not broadcast."""
    if rows.shape != (anchor_KxD.shape[0], anchor_KxD.shape[1] + 1) or gate_K.shape != text_bias_K.shape:
        raise ValueError(f"shapes do not match: anchor {anchor_KxD.shape}, rows {rows.shape}, gate {gate_K.shape}")
    gated = jnp.asarray(gate_K)[:, None] * rows
    return anchor_KxD + gated[:, :-1], text_bias_K + gated[:, -1]


def user_rows(anchor_UxD: jax.Array, text_bias_U: jax.Array) -> jax.Array:
    """[p_u | b_u] of users by their texts alone, float32 [U, D + 1]."""
    return jnp.concatenate([anchor_UxD, text_bias_U[:, None]], axis=1)


def pair_scores(
    mu: jax.Array | float, user_rows: jax.Array, q_PxD: jax.Array, b_P: jax.Array, keep_PxD: jax.Array | None = None
) -> jax.Array:
    """Scores of P pairs, float32 [P].

    `user_rows` [P, D + 1] = [p_u | b_u]; `keep_PxD`, if given, multiplies the D products (dropout's scaled mask).
    """
    products = user_rows[:, :-1] * q_PxD
    if keep_PxD is not None:
        products = products * keep_PxD
    return mu + user_rows[:, -1] + b_P + jnp.sum(products, axis=-1)


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Everything a score needs: mu, p [U, D], b_u [U], q [I, D], b_i [I], float32. A `Recommender`.

    `predicts_ratings` says whether scores are on the rating scale.
    """

    mu: float
    user_vectors: np.ndarray
    user_biases: np.ndarray
    item_vectors: np.ndarray
    item_biases: np.ndarray
    predicts_ratings: bool = True

    @property
    def only_products(self) -> bool:
        """Whether a score is <p_u, q_i> and nothing else, as of a model that is solved for lists.

        Then an item's vector times a factor is its score times it.
        """
        return not (self.predicts_ratings or self.mu or self.user_biases.any() or self.item_biases.any())

    def score(self, users_B: np.ndarray) -> jax.Array:
        """Scores of all items for a block of users, float32 [B, I]."""
        users_B = np.asarray(users_B)
        return scores(
            self.mu, self.user_vectors[users_B], self.user_biases[users_B], self.item_vectors, self.item_biases
        )

    def score_pairs(self, users_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
        """Scores of single pairs, float32 [P]."""
        users_P, items_P = np.asarray(users_P), np.asarray(items_P)
        if users_P.shape != items_P.shape:
            raise ValueError(f"shapes differ: users {users_P.shape}, items {items_P.shape}")
        products = np.einsum("pd,pd->p", self.user_vectors[users_P], self.item_vectors[items_P])
        return (self.mu + self.user_biases[users_P] + self.item_biases[items_P] + products).astype(np.float32)


def score_rows(num_items: int) -> int:
    """Users that one call of the compiled block scores: 8, or 1 in a catalogue where a block of 8 would be slow."""
    return 8 if num_items <= _LARGE_CATALOGUE else 1


def scores(mu: float, p_BxD: Array, b_B: Array, q_IxD: Array, b_I: Array) -> jax.Array:
    """mu + b_u + b_i + <p_u, q_i> of all items for B users, float32 [B, I].

    Whatever B is, one compiled program of `score_rows` users does the work: products of the same vectors in matrices
    of different shapes differ in their last bits, and what is served must rank exactly as what was evaluated.
    """
    rows, count = score_rows(len(b_I)), len(b_B)
    p_BxD, b_B = np.asarray(p_BxD, np.float32), np.asarray(b_B, np.float32)
    q_IxD, b_I = jnp.asarray(q_IxD), jnp.asarray(b_I)
    missing = -count % rows
    p_BxD, b_B = np.pad(p_BxD, ((0, missing), (0, 0))), np.pad(b_B, (0, missing))
    blocks = [
        _score_block(jnp.float32(mu), p_BxD[start : start + rows], b_B[start : start + rows], q_IxD, b_I)
        for start in range(0, count, rows)
    ]
    if not blocks:
        return jnp.zeros((0, len(b_I)), jnp.float32)
    return (blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks))[:count]


@jax.jit
def _score_block(mu: jax.Array, p_BxD: jax.Array, b_B: jax.Array, q_IxD: jax.Array, b_I: jax.Array) -> jax.Array:
    # One user: a matrix by a vector reads q once, 22 ms for a million items on one core; as a product of matrices, 195.
    products = (q_IxD @ p_BxD[0])[None, :] if len(p_BxD) == 1 else p_BxD @ q_IxD.T
    return mu + b_B[:, None] + b_I[None, :] + products
