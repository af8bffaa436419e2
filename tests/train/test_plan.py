"""A plan against the states and sources that training really makes."""

import dataclasses
import io

import jax
import pytest
from rich.console import Console

from ltrec_jax.commands.plan_table import plan_table
from ltrec_jax.train import layer_cache, phases, problem
from ltrec_jax.train.plan import make_plan


def real_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["top:1", "all"])
def test_a_plan_foresees_what_training_makes_and_encodes_nothing(
    small_split, small_config, trainable, cache, monkeypatch
):
    config = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, trainable=trainable))
    with monkeypatch.context() as patched:
        for module, name in ((problem.catalogue, "encode_catalogue"), (layer_cache, "_compute")):
            patched.setattr(module, name, lambda *_, **__: pytest.fail("a dry run encodes nothing"))
        plan = make_plan(small_split, config)
    head, encoder = plan.phases
    assert (head.name, encoder.name, head.epochs, encoder.epochs) == ("head", "encoder", 4, 2)
    real = problem.load_problem(small_split, config)
    prepared = phases.prepare_encoder(real, 2, patience=0, start=None)
    state, source = prepared.state, prepared.source
    assert encoder.tokens_per_epoch == source.tokens_per_epoch > 0 == head.tokens_per_epoch
    assert encoder.table_bytes == real_bytes([table.values for table in state.tables.values()])
    moments = [table.columns[1:] for table in state.tables.values()]
    assert encoder.optimizer_bytes == real_bytes((state.optimizer, moments))
    assert encoder.step_bytes > real_bytes(state)
    assert plan.seconds(encoder) > 0 == plan.seconds(head)
    hidden = real.hidden_states()
    assert plan.cache_bytes == (0 if trainable == "all" else hidden.values.nbytes)


def test_the_table_says_what_it_means(small_split, small_config):
    train = dataclasses.replace(small_config.train, head_epochs=0)
    plan = make_plan(small_split, dataclasses.replace(small_config, train=train))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(plan_table(plan))
    text = console.export_text()
    assert "phase encoder" in text
    assert "phase head" not in text
    assert f"{plan.phases[0].tokens_per_epoch:,}" in text
    assert f"{plan.parameters:,} parameters in all" in " ".join(text.split())
