"""A plan against the states and sources that training really makes."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from rich.console import Console

from ltrec_jax.commands.plan_table import plan_table
from ltrec_jax.config import ScheduleConfig, WholeDataConfig
from ltrec_jax.solve.anchored_model import Anchors
from ltrec_jax.train import item_phase, layer_cache, phases, problem, solves
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
    moments = [(table.columns[1:], table.clock) for table in state.tables.values()]
    assert encoder.optimizer_bytes == real_bytes((state.optimizer, moments))
    assert encoder.step_bytes > real_bytes(state)
    assert plan.seconds(encoder) > 0 == plan.seconds(head)
    hidden = real.hidden_states()
    assert plan.cache_bytes == (0 if trainable == "all" else hidden.values.nbytes)


@pytest.mark.parametrize(("goal", "share"), [("explicit", 0.0), ("whole_data", 0.0), ("whole_data", 0.2)])
def test_a_plan_of_a_schedule_foresees_the_phase_between_its_solves(small_split, small_config, cache, goal, share):
    schedule = ScheduleConfig(goal=goal, trainable="top:1", epochs=3)
    words = WholeDataConfig(lexical_share=share, lexical_rank=5)
    config = dataclasses.replace(small_config, schedule=schedule, whole_data=words)
    plan = make_plan(small_split, config)
    [items] = plan.phases
    real = problem.load_problem(small_split, config)
    width = solves.width(real)
    assert width == solves.width(problem.load_problem(small_split, config, dry=True))
    rows = np.zeros((small_split.dataset.num_items, width + (goal == "explicit")), np.float32)
    anchors = Anchors(np.zeros(16, np.float32), rows[:, :0], np.zeros((16, rows.shape[1]), np.float32))
    prepared = item_phase.prepare(real, anchors, rows, solves.counts(real))
    assert (items.epochs, items.encodings_per_epoch) == (3, np.count_nonzero(solves.counts(real)))
    assert items.tokens_per_epoch == prepared.source.tokens_per_epoch
    assert items.trainable == sum(leaf.size for leaf in jax.tree.leaves(prepared.state.trainable))
    assert items.optimizer_bytes == real_bytes(prepared.state.optimizer)
    assert plan.seconds(items) > 0
    assert plan.solves == 2
    frozen = make_plan(small_split, dataclasses.replace(config, schedule=ScheduleConfig(steps="solve", goal=goal)))
    assert (frozen.phases, frozen.solves) == ((), 1)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(plan_table(frozen))
    assert "One exact solve" in console.export_text()


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
