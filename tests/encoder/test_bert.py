"""The encoder against what PyTorch and Flax computed with the same weights, per part and whole, and its own laws."""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ltrec_jax.encoder import dense, inference, names
from ltrec_jax.encoder.bert import Bert, initialise, restarting_positions
from ltrec_jax.encoder.config import EncoderConfig

PART, WHOLE = 1e-5, 1e-4


def close(actual: Any, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


def apply(stored: Any, *args: Any, policy: dense.Policy = "float32", method: str = "__call__", **kwargs: Any) -> Any:
    bert = Bert(stored.encoder.config, policy)
    arrays = {name: kwargs.pop(name) for name in list(kwargs) if name in ("token_type_ids", "rngs")}
    # Integers (first and last layer) are static.
    static = tuple(i + 1 for i, arg in enumerate(args) if isinstance(arg, int))

    def run(params: Any, *args: Any, **arrays: Any) -> jax.Array:
        return bert.apply({"params": params}, *args, method=method, **arrays, **kwargs)

    return jax.jit(run, static_argnums=static)(stored.encoder.params, *args, **arrays)


def test_embeddings_equal_pytorch(torch_stored: Any) -> None:
    hidden = apply(torch_stored, torch_stored.ids, torch_stored.mask, method="embed")
    close(hidden[torch_stored.real], torch_stored.expected["hidden.0"][torch_stored.real], PART)


@pytest.mark.parametrize("layer", [0, 1])
def test_one_layer_equals_pytorch(torch_stored: Any, layer: int) -> None:
    entering = torch_stored.expected[f"hidden.{layer}"]
    hidden = apply(torch_stored, entering, torch_stored.mask, layer, layer + 1, method="run_layers")
    close(hidden[torch_stored.real], torch_stored.expected[f"hidden.{layer + 1}"][torch_stored.real], PART)


def test_whole_encoder_equals_pytorch(torch_stored: Any) -> None:
    hidden = apply(torch_stored, torch_stored.ids, torch_stored.mask)
    assert hidden.dtype == jnp.float32
    close(hidden[torch_stored.real], torch_stored.expected["hidden.2"][torch_stored.real], WHOLE)


def test_pooler_equals_pytorch(torch_stored: Any) -> None:
    if not torch_stored.encoder.config.has_pooler:
        assert "pooler" not in torch_stored.encoder.params
        return
    pooled = apply(torch_stored, torch_stored.expected["hidden.2"][:, 0], method="pool")
    close(pooled, torch_stored.expected["pooled"], PART)


def test_whole_encoder_equals_flax(flax_stored: Any) -> None:
    hidden = apply(flax_stored, flax_stored.ids, flax_stored.mask)
    close(hidden[flax_stored.real], flax_stored.expected["hidden"][flax_stored.real], WHOLE)


def packed_rows(stored: Any) -> tuple[np.ndarray, np.ndarray]:
    """(ids, segments): the texts of a stored batch and two tokens of padding, in one row."""
    lengths = stored.mask.sum(axis=1)
    ids = np.concatenate([row[:n] for row, n in zip(stored.ids, lengths, strict=True)] + [[0, 0]])[None]
    return ids, np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, 2])[None]


def gradients_equal_pytorch(stored: Any, ids: np.ndarray, segments: np.ndarray, weights: np.ndarray) -> None:
    bert = Bert(stored.encoder.config)

    @jax.jit
    def loss(params: Any) -> jax.Array:
        return jnp.sum(weights * bert.apply({"params": params}, ids, segments))

    gradients = flatten_dict(jax.grad(loss)(stored.encoder.params), sep="/")
    compared = 0
    for path, gradient in gradients.items():
        name = names.foreign_names(path, stored.encoder.config, "safetensors")[0]
        if path.startswith("pooler"):
            assert not np.any(gradient)
            continue
        expected = stored.expected[f"grad.{name}"]
        close(gradient, expected.T if path.endswith("kernel") else expected, WHOLE)
        compared += 1
    assert compared == sum(name.startswith("grad.") for name in stored.expected)


def test_gradients_equal_pytorch(torch_stored: Any) -> None:
    gradients_equal_pytorch(torch_stored, torch_stored.ids, torch_stored.mask, torch_stored.expected["weights"])


def test_gradients_of_packed_texts_equal_those_of_pytorch_unpacked(tiny_bert: Any) -> None:
    weights = tiny_bert.expected["weights"]
    assert not weights[~tiny_bert.real].any()
    packed = np.pad(weights[tiny_bert.real], ((0, 2), (0, 0)))[None]
    gradients_equal_pytorch(tiny_bert, *packed_rows(tiny_bert), packed)


@pytest.mark.parametrize("policy", get_args(dense.Policy))
def test_packed_equals_unpacked(torch_stored: Any, policy: dense.Policy) -> None:
    params = inference.prepare(jax.tree.map(jnp.asarray, torch_stored.encoder.params), policy)
    stored = dataclasses.replace(torch_stored, encoder=dataclasses.replace(torch_stored.encoder, params=params))
    unpacked = apply(stored, stored.ids, stored.mask, policy=policy)
    packed = apply(stored, *packed_rows(stored), policy=policy)
    close(packed[0, :-2], np.asarray(unpacked)[stored.real], 2e-6 if policy == "float32" else 2e-2)


def test_positions_may_be_given(torch_stored: Any) -> None:
    given = np.broadcast_to(np.arange(torch_stored.ids.shape[1]), torch_stored.ids.shape)
    explicit = apply(torch_stored, torch_stored.ids, torch_stored.mask, given)
    implicit = apply(torch_stored, torch_stored.ids, torch_stored.mask)
    close(explicit[torch_stored.real], np.asarray(implicit)[torch_stored.real], 1e-6)


def test_positions_restart_at_each_segment() -> None:
    segments = jnp.array([[5, 5, 7, 7, 7, 0], [1, 0, 0, 0, 3, 3]])
    assert restarting_positions(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 2, 0, 1]]


def test_padding_content_changes_nothing(tiny_bert: Any) -> None:
    other = np.where(tiny_bert.mask == 1, tiny_bert.ids, 9)
    one, two = (apply(tiny_bert, ids, tiny_bert.mask)[tiny_bert.real] for ids in (tiny_bert.ids, other))
    np.testing.assert_array_equal(one, two)


def test_a_row_of_nothing_but_padding_is_finite(tiny_bert: Any) -> None:
    hidden = apply(tiny_bert, tiny_bert.ids, np.zeros_like(tiny_bert.mask))
    assert bool(jnp.isfinite(hidden).all())


def test_gathered_rows_replace_the_word_table(tiny_bert: Any) -> None:
    params = dict(tiny_bert.encoder.params)
    table = params["embeddings"]["word_embeddings"]["embedding"]
    params["embeddings"] = {k: v for k, v in params["embeddings"].items() if k != "word_embeddings"}
    bert = Bert(tiny_bert.encoder.config)

    def loss(rows: jax.Array) -> jax.Array:
        hidden = bert.apply({"params": params}, tiny_bert.ids, tiny_bert.mask, word_embeddings_RxLxE=rows)
        return jnp.sum(tiny_bert.expected["weights"] * hidden)

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(table[tiny_bert.ids]))
    dense_gradient = jax.ops.segment_sum(
        gradient.reshape(-1, table.shape[1]), tiny_bert.ids.reshape(-1), num_segments=len(table)
    )
    expected = tiny_bert.expected["grad.embeddings.word_embeddings.weight"]
    # PyTorch keeps the padding row's gradient at zero by convention.
    close(dense_gradient[1:], expected[1:], WHOLE)


def test_token_types_are_used(tiny_bert: Any) -> None:
    zeros = apply(tiny_bert, tiny_bert.ids, tiny_bert.mask, token_type_ids=np.zeros_like(tiny_bert.ids))
    ones = apply(tiny_bert, tiny_bert.ids, tiny_bert.mask, token_type_ids=np.ones_like(tiny_bert.ids))
    close(zeros, np.asarray(apply(tiny_bert, tiny_bert.ids, tiny_bert.mask)), 1e-6)
    assert float(jnp.abs(ones - zeros).max()) > 0.1


def test_layers_run_in_parts(tiny_bert: Any) -> None:
    entering = apply(tiny_bert, tiny_bert.ids, tiny_bert.mask, method="embed")
    middle = apply(tiny_bert, entering, tiny_bert.mask, 0, 1, method="run_layers")
    end = apply(tiny_bert, middle, tiny_bert.mask, 1, 2, method="run_layers")
    close(end, np.asarray(apply(tiny_bert, tiny_bert.ids, tiny_bert.mask)), 1e-6)


def test_dropout_draws_from_its_key(tiny_bert: Any) -> None:
    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        bert, params = Bert(tiny_bert.encoder.config), {"params": tiny_bert.encoder.params}
        return bert.apply(params, tiny_bert.ids, tiny_bert.mask, deterministic=False, rngs={"dropout": key})

    one, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 0.1


def test_a_text_has_its_dropout_masks_wherever_it_is_packed(tiny_bert: Any) -> None:
    config = dataclasses.replace(tiny_bert.encoder.config, hidden_dropout=0.3, attention_dropout=0.3)
    first, second = [5, 9, 7], [11, 6]

    def run(*rows: list[tuple[list[int], int, int]]) -> dict[int, np.ndarray]:
        """Hidden states of each text, by its name, from rows of (token ids, name, segment)."""
        ids, segments, names = np.zeros((3, len(rows), 8), np.int32)
        for row, texts in enumerate(rows):
            at = 0
            for tokens, name, segment in texts:
                here = (row, slice(at, at := at + len(tokens)))
                ids[here], segments[here], names[here] = tokens, segment, name
        hidden = Bert(config).apply(
            {"params": tiny_bert.encoder.params},
            ids,
            segments,
            deterministic=False,
            text_names_RxL=names,
            rngs={"dropout": jax.random.key(3)},
        )
        return {name: np.asarray(hidden)[(names == name) & (segments > 0)] for row in rows for _, name, _ in row}

    apart = run([(first, 40, 1)], [(second, 41, 1)])
    packed = run([(second, 41, 1), (first, 40, 2)])
    close(packed[40], apart[40], 1e-5)
    close(packed[41], apart[41], 1e-5)
    assert np.abs(run([(first, 42, 1)])[42] - apart[40]).max() > 0.1


def test_attention_with_zero_dropout_takes_the_same_values(tiny_bert: Any) -> None:
    """The explicit attention path, reached by a vanishing rate, equals the fused one."""
    config = dataclasses.replace(tiny_bert.encoder.config, hidden_dropout=0.0, attention_dropout=1e-9)
    explicit = Bert(config).apply(
        {"params": tiny_bert.encoder.params},
        tiny_bert.ids,
        tiny_bert.mask,
        deterministic=False,
        rngs={"dropout": jax.random.key(0)},
    )
    close(explicit, np.asarray(apply(tiny_bert, tiny_bert.ids, tiny_bert.mask)), 2e-6)


@pytest.mark.parametrize(("policy", "dtype"), [("bfloat16", jnp.float32), ("bfloat16_kept", jnp.bfloat16)])
def test_bfloat16_stays_near_float32(torch_stored: Any, policy: dense.Policy, dtype: Any) -> None:
    exact = np.asarray(apply(torch_stored, torch_stored.ids, torch_stored.mask))[torch_stored.real]
    rounded = apply(torch_stored, torch_stored.ids, torch_stored.mask, policy=policy)
    assert rounded.dtype == dtype
    rounded = np.asarray(rounded, np.float32)[torch_stored.real]
    cosine = (exact * rounded).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rounded, axis=-1)
    assert cosine.min() > 0.9995
    assert np.abs(exact - rounded).max() > 0.0


def test_fresh_parameters_have_the_tree_of_a_checkpoint(tiny_bert: Any) -> None:
    fresh = flatten_dict(jax.jit(initialise, static_argnums=0)(tiny_bert.encoder.config, jax.random.key(0)), sep="/")
    loaded = flatten_dict(tiny_bert.encoder.params, sep="/")
    assert {k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in loaded.items()}
    assert float(np.std(fresh["encoder/layer/0/output/dense/kernel"])) == pytest.approx(0.02, rel=0.1)


def test_eleven_layers_run_in_numeric_order() -> None:
    """Layer names are strings; "10" must come after "2"."""
    config = EncoderConfig(
        vocab_size=10, hidden_size=4, num_layers=11, num_heads=1, intermediate_size=4, position_rows=8
    )
    generator = np.random.default_rng(3)
    shapes = names.expected_shapes(config)
    flat = {path: generator.normal(0.0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()}
    noisy = unflatten_dict(flat, sep="/")
    # The bias of a layer's last step is its number: the hidden states tell which layer ran last.
    for i in range(11):
        norm = noisy["encoder"]["layer"][str(i)]["output"]["LayerNorm"]
        norm["scale"], norm["bias"] = np.ones(4, np.float32), np.full(4, i, np.float32)
    hidden = jax.jit(Bert(config).apply)({"params": noisy}, jnp.array([[1, 2]]), jnp.ones((1, 2), jnp.int32))
    np.testing.assert_allclose(hidden.mean(-1), 10.0, atol=1e-4)


def with_dropout(stored: Any, bert: Bert) -> Any:
    """(gradient of the weighted sum of the hidden states, hidden states), of one dropout key."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        rngs = {"dropout": jax.random.key(1)}
        hidden = bert.apply({"params": params}, stored.ids, stored.mask, deterministic=False, rngs=rngs)
        return jnp.sum(stored.expected["weights"] * hidden), hidden

    return jax.jit(jax.grad(loss, has_aux=True))(stored.encoder.params)


@pytest.fixture(scope="module")
def dropping(tiny_bert: Any) -> EncoderConfig:
    return dataclasses.replace(tiny_bert.encoder.config, hidden_dropout=0.3, attention_dropout=0.3)


@pytest.fixture(scope="module")
def plainly_run(tiny_bert: Any, dropping: EncoderConfig) -> Any:
    return with_dropout(tiny_bert, Bert(dropping))


@pytest.mark.parametrize(
    ("remat", "scan"),
    [
        pytest.param(True, False, marks=pytest.mark.slow),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_remat_and_scan_change_nothing(
    tiny_bert: Any, dropping: EncoderConfig, plainly_run: Any, remat: bool, scan: bool
) -> None:
    """Dropout's masks included, forwards and where a layer is computed again backwards."""
    plain_gradient, plain_hidden = plainly_run
    gradient, hidden = with_dropout(tiny_bert, Bert(dropping, remat=remat, scan=scan))
    close(hidden, np.asarray(plain_hidden), 5e-6)
    assert jax.tree.structure(gradient) == jax.tree.structure(plain_gradient)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True):
        close(one, np.asarray(two), WHOLE)


def test_layers_that_run_in_parts_drop_what_the_whole_stack_drops(tiny_bert: Any) -> None:
    config = dataclasses.replace(tiny_bert.encoder.config, hidden_dropout=0.3, attention_dropout=0.0)

    @jax.jit
    def run(hidden: jax.Array) -> tuple[jax.Array, ...]:
        def layers(hidden: jax.Array, first: int, last: int | None, **how: bool) -> jax.Array:
            rngs, params = {"dropout": jax.random.key(1)}, {"params": tiny_bert.encoder.params}
            mask, method = tiny_bert.mask, Bert.run_layers
            return Bert(config, **how).apply(
                params, hidden, mask, first, last, method=method, deterministic=False, rngs=rngs
            )

        middle = layers(hidden, 0, 1)
        return layers(hidden, 0, None), *(layers(middle, 1, None, scan=scan) for scan in (False, True))

    whole, *parts = run(tiny_bert.expected["hidden.0"])
    assert np.abs(np.asarray(whole) - tiny_bert.expected["hidden.2"])[tiny_bert.real].max() > 0.1
    for part in parts:
        close(part, np.asarray(whole), 1e-6)


def test_scan_initialises_the_same_tree_runs_parts_and_drops_out(tiny_bert: Any) -> None:
    config, params = tiny_bert.encoder.config, {"params": tiny_bert.encoder.params}
    bert = Bert(config, scan=True)
    tree = jax.eval_shape(lambda: bert.init(jax.random.key(0), tiny_bert.ids, tiny_bert.mask)["params"])
    assert jax.tree.structure(tree) == jax.tree.structure(tiny_bert.encoder.params)
    entering = tiny_bert.expected["hidden.1"]
    part = bert.apply(params, entering, tiny_bert.mask, 1, 2, method="run_layers")
    close(part[tiny_bert.real], tiny_bert.expected["hidden.2"][tiny_bert.real], PART)

    @jax.jit
    def dropped(key: jax.Array) -> jax.Array:
        return bert.apply(params, tiny_bert.ids, tiny_bert.mask, deterministic=False, rngs={"dropout": key})

    one, again, other = (dropped(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 0.1
