"""Dropout masks as a function of what they belong to, not of where it lies in an array.

A pair, or a token of a text, has the same mask on every number of devices, in every slice of an accumulated batch and
in every row it may be packed into. Out of scope: rates, and what is multiplied.
"""

import jax

from ltrec_jax.types import Array


def keep_mask(key: jax.Array, *names_N: Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """What dropout multiplies N things of this shape with, float32 [N, *shape]: 0, or 1 / (1 - rate).

    `names_N` are integers [N] that together name each thing; equal names have equal masks under one key. `rate` in
    [0, 1) is the share of zeros (Srivastava et al., JMLR 2014).
    """

    def one(*names: Array) -> jax.Array:
        of_its_own = key
        for name in names:
            of_its_own = jax.random.fold_in(of_its_own, name)
        return jax.random.bernoulli(of_its_own, 1.0 - rate, shape)

    return jax.vmap(one)(*names_N) / (1.0 - rate)
