"""What a training run is made of: trainable and frozen parameters, sparse tables, optimizer state, step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from ltrec_jax import parallel
from ltrec_jax.train import sparse_table
from ltrec_jax.train.sparse_table import SparseTable
from ltrec_jax.types import PyTree

Path = tuple[str, ...]
WORDS = ("encoder", "embeddings", "word_embeddings", "embedding")
"""Where the word table stands in the parameter tree; it trains as a sparse table named `words`."""
HEADS = ("head", "user_head")
"""What places the texts of items, and of users where they have some."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step int32; `trainable` and `frozen` partition the parameters; tables users, items [N, D + 1], words [V, E].

    `average` is the moving average of `trainable`, or None where none is kept; tables have none.
    """

    step: jax.Array
    trainable: PyTree
    frozen: PyTree
    tables: dict[str, SparseTable]
    optimizer: Any
    average: PyTree | None = None


def partition(params: PyTree, is_trainable: Callable[[Path], bool]) -> tuple[PyTree, PyTree]:
    """Split a nested dict of leaves by their paths: (those that train, the others). Empty branches vanish."""
    flat = traverse_util.flatten_dict(params)
    chosen = {path: leaf for path, leaf in flat.items() if is_trainable(path)}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return traverse_util.unflatten_dict(chosen), traverse_util.unflatten_dict(rest)


def merge(*trees: PyTree) -> PyTree:
    """One nested dict from several with disjoint leaves: the inverse of `partition`."""
    flat: dict[Path, Any] = {}
    for tree in trees:
        leaves = traverse_util.flatten_dict(tree)
        if both := flat.keys() & leaves.keys():
            raise ValueError(f"these leaves stand in two trees: {sorted(both)}")
        flat |= leaves
    return traverse_util.unflatten_dict(flat)


def without(tree: PyTree, path: Path) -> PyTree:
    """The nested dict without one leaf (which must be there)."""
    flat = traverse_util.flatten_dict(tree)
    del flat[path]
    return traverse_util.unflatten_dict(flat)


def trainable_rule(what: str, num_layers: int) -> Callable[[Path], bool]:
    """Which leaves learn by gradient: the heads' always; of the encoder `all`, `top:N` layers, `bias` or `none`.

    The word table is not among them: under `all` it trains as a sparse table. The pooler's weights do not learn, since
    no pooling of ours but `pooler` passes through them and weight decay would only shrink them.
    """
    lowest = num_layers - int(what[4:]) if what.startswith("top:") else 0

    def rule(path: Path) -> bool:
        if path[0] in HEADS:
            return path[1] in ("projection", "text_bias")
        if what == "none" or path == WORDS or "pooler" in path:
            return False
        if what == "bias":
            return path[-1] == "bias"
        if what == "all":
            return True
        return path[1:3] == ("encoder", "layer") and int(path[3]) >= lowest

    return rule


def frozen_layers(what: str, num_layers: int) -> int:
    """How many of the lowest layers never change under `trainable_rule(what, ...)`, and the embeddings with them."""
    if what == "none":
        return num_layers
    return max(0, num_layers - int(what[4:])) if what.startswith("top:") else 0


def full_params(state: TrainState) -> PyTree:
    """The whole parameter tree as it is evaluated: the average where one is kept, the word table back in its place.

    The word table is that of the last step: only dense leaves are averaged.
    """
    trees = [state.trainable if state.average is None else state.average, state.frozen]
    if "words" in state.tables:
        trees.append(traverse_util.unflatten_dict({WORDS: state.tables["words"].values}))
    return merge(*trees)


def layout(state: TrainState) -> PyTree:
    """How a state lies over the devices: whole on each, but for tables that are split by rows."""
    if all(table.split_rows is None for table in state.tables.values()):
        return parallel.WHOLE
    whole = parallel.WHOLE
    tables: Any = {name: sparse_table.layout(table) for name, table in state.tables.items()}
    return TrainState(whole, whole, whole, tables, whole, None if state.average is None else whole)  # type: ignore[arg-type]


def own_copy(tree: PyTree) -> PyTree:
    """A tree whose buffers nobody else holds, so that a donating step cannot take them from under their owner."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
