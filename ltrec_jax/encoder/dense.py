"""Products with the dtype policy, and what a platform needs to run them fast. Out of scope: what is multiplied.

A policy names the operands of the large products; accumulation, bias, activation and everything outside the product
stay float32. "float32": float32 operands. "bfloat16": operands rounded to bfloat16, float32 result. "int8", for
inference alone, behind a LayerNorm and on some CPUs elsewhere too: as `int8` says; the rest as "bfloat16".
"bfloat16_kept", which `for_inference` chooses and no setting names: as "bfloat16", and what lies between products is
stored so too.

Figures in comments: MiniLM's shapes (E=384, F=1536, 12 heads), 1,024 tokens, 2 cores with AMX, medians.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from ltrec_jax.encoder import int8

Policy = Literal["float32", "bfloat16", "int8", "bfloat16_kept"]
TRAINING_POLICIES: tuple[Policy, ...] = ("float32", "bfloat16")

_ROWS = ((1,), (0,))  # [N, I] x [I, O]
_TRANSPOSED = ((1,), (1,))  # [N, O] x [I, O]
_BOTH_FIRST = ((0,), (0,))  # [N, I] x [N, O]
_ROW_MAJOR = Layout((0, 1))


def operand(x: jax.Array, policy: Policy) -> jax.Array:
    """The array as the policy's product takes it."""
    return x.astype(jnp.bfloat16) if policy in ("bfloat16", "bfloat16_kept") else x


def for_inference(policy: Policy) -> Policy:
    """The policy where nothing is differentiated: on an accelerator "bfloat16" becomes "bfloat16_kept".

    There passes over memory take as long as the products do. MiniLM, a million tokens in rows of 256, H200: 186 ms of
    kernels with float32 between products, 170 ms in all without. The least cosine of 3,883 film titles to float32 is
    .999974, with float32 between products .999985.
    """
    return "bfloat16_kept" if policy == "bfloat16" and jax.default_backend() != "cpu" else policy


def affine_kept(x_NxI: jax.Array, kernel_IxO: jax.Array, bias_O: jax.Array, activation: str = "none") -> jax.Array:
    """`affine` for "bfloat16_kept", bfloat16 [N, O]: float32 sums, rounded as they are stored. No gradient."""
    dtype = jnp.bfloat16
    product_NxO = jax.lax.dot(x_NxI.astype(dtype), kernel_IxO.astype(dtype), preferred_element_type=dtype)
    y_NxO = product_NxO + bias_O.astype(dtype)[None, :]
    function = gelu_near if activation == "gelu" else ACTIVATIONS[activation]
    return y_NxO if activation == "none" else function(y_NxO.astype(jnp.float32)).astype(dtype)


def behind_others(policy: Policy) -> Policy:
    """The policy of products that follow no LayerNorm: bfloat16 for int8 where rounding them gains nothing."""
    return "bfloat16" if policy == "int8" and not int8.everywhere() else policy


def affine_int8(x: int8.Rounded, kernel: int8.Kernel, bias_O: jax.Array, activation: str = "none") -> jax.Array:
    """`affine` with kernel and input rounded. No gradient."""
    return _activate(int8.product(x, kernel), bias_O, activation, near=True)


def _product(left: jax.Array, right: jax.Array, contracted: tuple[tuple[int], tuple[int]], policy: Policy) -> jax.Array:
    """One product of two matrices, float32: a bfloat16 result would give up both the CPU's fast path and accuracy."""
    left, right = operand(left, policy), operand(right, policy)

    def anywhere(left: jax.Array, right: jax.Array) -> jax.Array:
        # Without it, GPU and TPU round float32 operands to TF32 or bfloat16.
        precision = jax.lax.Precision.HIGHEST if policy == "float32" else None
        dimensions = (contracted, ((), ()))
        return jax.lax.dot_general(left, right, dimensions, precision, preferred_element_type=jnp.float32)

    def on_cpu(left: jax.Array, right: jax.Array) -> jax.Array:
        # Where a consumer wants the transpose, XLA lays the result out column by column, and for that layout the CPU
        # has no bfloat16 product at all ("UNIMPLEMENTED: ... BF16 x BF16 = F32" at run time, jax 0.10).
        return with_layout_constraint(anywhere(left, right), _ROW_MAJOR)

    # float32 has a product for every layout, and stays free of what `jax.export` cannot promise to keep.
    if policy == "float32":
        return anywhere(left, right)
    return jax.lax.platform_dependent(left, right, cpu=on_cpu, default=anywhere)


def weight_gradient(x_NxI: jax.Array, g_NxO: jax.Array, policy: Policy) -> jax.Array:
    """x^T g, [I, O] float32."""
    x_NxI, g_NxO = operand(x_NxI, policy), operand(g_NxO, policy)

    def anywhere(x: jax.Array, g: jax.Array) -> jax.Array:
        return _product(x, g, _BOTH_FIRST, policy)

    def on_cpu(x: jax.Array, g: jax.Array) -> jax.Array:
        # bfloat16 with both first dimensions contracted misses the fast product: 4.5 ms against 1.3 ms with one operand
        # laid out transposed. That must be the narrower one: XLA fuses what made the operand (GELU) into the
        # transposing copy, and a feed-forward block, both directions, takes 44 ms instead of 6.5.
        if x.shape[1] <= g.shape[1]:
            return _product(with_layout_constraint(x.T, _ROW_MAJOR), g, _ROWS, policy)
        # Transposed for good: Adam would read it across its rows for both moments and the weight (9 ms in 104).
        found_IxO = _product(with_layout_constraint(g.T, _ROW_MAJOR), x, _ROWS, policy).T
        return with_layout_constraint(found_IxO, _ROW_MAJOR)

    if policy == "float32":
        return anywhere(x_NxI, g_NxO)
    return jax.lax.platform_dependent(x_NxI, g_NxO, cpu=on_cpu, default=anywhere)


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), exact, by erf. `jax.nn.gelu` goes through erfc, twice as slow on a CPU (1.0 ms against 0.5)."""
    half = 0.5 * x
    return half + half * jax.lax.erf(x * 0.5**0.5)


def gelu_near(x: jax.Array) -> jax.Array:
    """`gelu` to 7e-5 absolute (beyond |x| = 4: 4e-5 of x), a thirtieth of what bfloat16 rounds off near 1.

    x (1/2 + t P(t^2)) with t = x clipped to [-4, 4] and P fitted for the least largest error. 0.85 ms against 1.17 for
    erf (2,048 tokens), and in int8 XLA fuses it with what is before and behind, where it stores erf: 76 against 60 ms
    for the whole encoder.
    """
    t = jnp.clip(x, -_GELU_CLIP, _GELU_CLIP)
    square = t * t
    series = jnp.full_like(x, _GELU_SERIES[-1])
    for coefficient in _GELU_SERIES[-2::-1]:
        series = series * square + coefficient
    return x * (0.5 + t * series)


_GELU_CLIP = 4.0
_GELU_SERIES = (
    0.3986734,
    -0.06588784,
    0.009505399,
    -0.00100649,
    7.485505e-05,
    -3.657133e-06,
    1.04196e-07,
    -1.301294e-09,
)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def affine(
    x_NxI: jax.Array, kernel_IxO: jax.Array, bias_O: jax.Array, policy: Policy, activation: str = "none"
) -> jax.Array:
    """activation(x W + b), float32 [N, O], with the products in the policy's precision in both directions."""
    return _activate(_product(x_NxI, kernel_IxO, _ROWS, policy), bias_O, activation, near=policy != "float32")


def _activate(product_NxO: jax.Array, bias_O: jax.Array, activation: str, near: bool = False) -> jax.Array:
    """`near`: without a gradient to follow, and rounded afterwards."""
    function = gelu_near if near and activation == "gelu" else ACTIVATIONS[activation]
    return function(product_NxO + bias_O[None, :])


def _affine_forward(
    x_NxI: jax.Array, kernel_IxO: jax.Array, bias_O: jax.Array, policy: Policy, activation: str
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    product_NxO = _product(x_NxI, kernel_IxO, _ROWS, policy)
    # Of an activation only its input is kept, and computed through again backwards: memory traffic costs more.
    kept = None if activation == "none" else product_NxO
    return _activate(product_NxO, bias_O, activation), (operand(x_NxI, policy), kernel_IxO, bias_O, kept)


def _affine_backward(
    policy: Policy, activation: str, residuals: tuple[jax.Array, ...], g_NxO: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_NxI, kernel_IxO, bias_O, product_NxO = residuals
    if activation != "none":
        # The barrier keeps XLA from merging both computations, which would store erf(x) in between after all.
        product_NxO = jax.lax.optimization_barrier(product_NxO)
        g_NxO = jax.vjp(lambda product: _activate(product, bias_O, activation), product_NxO)[1](g_NxO)[0]
    # Rounded once, before all three uses: XLA would otherwise store the float32 form beside the bfloat16 one.
    g_NxO = jax.lax.optimization_barrier(operand(g_NxO, policy))
    return (
        _product(g_NxO, kernel_IxO, _TRANSPOSED, policy),
        weight_gradient(x_NxI, g_NxO, policy),
        g_NxO.sum(axis=0, dtype=jnp.float32),
    )


affine.defvjp(_affine_forward, _affine_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def scores(x_NxI: jax.Array, table_OxI: jax.Array, policy: Policy) -> jax.Array:
    """x E^T, float32 [N, O]: every row against every row of a table, in the policy's precision in both directions.

    `affine` with a transposed table would copy it: 352 rows against a vocabulary of 30,522, forwards and backwards,
    106 ms instead of 65 in bfloat16.
    """
    return _product(x_NxI, table_OxI, _TRANSPOSED, policy)


def _scores_forward(x_NxI: jax.Array, table_OxI: jax.Array, policy: Policy) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return scores(x_NxI, table_OxI, policy), (operand(x_NxI, policy), table_OxI)


def _scores_backward(policy: Policy, residuals: tuple[jax.Array, ...], g_NxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_NxI, table_OxI = residuals
    g_NxO = jax.lax.optimization_barrier(operand(g_NxO, policy))
    return _product(g_NxO, table_OxI, _ROWS, policy), weight_gradient(g_NxO, x_NxI, policy)


scores.defvjp(_scores_forward, _scores_backward)
