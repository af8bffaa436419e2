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
from ltrec_jax.train.plan import ENCODE, ENCODE_AGAIN, make_plan


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
    kept = ["hidden states"] if hidden else []
    assert [stage.name for stage in plan.stages] == [ENCODE, "head", *kept, "encoder", ENCODE_AGAIN]
    assert plan.solves == 0


@pytest.mark.parametrize(
    ("goal", "share"),
    # Each compiles a step of its own; the last differs from the one before by the width alone.
    [("explicit", 0.0), pytest.param("whole_data", 0.0, marks=pytest.mark.slow), ("whole_data", 0.2)],
)
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
    in_order = [ENCODE, "solve", "hidden states", "items", ENCODE_AGAIN, "solve again"]
    assert [stage.name for stage in plan.stages] == in_order
    by_name = {stage.name: stage for stage in plan.stages}
    assert all(stage.seconds > 0 and stage.bytes > 0 for stage in plan.stages)
    # Half of the two layers is run on either side of the stored states.
    np.testing.assert_allclose(by_name["hidden states"].seconds, by_name[ENCODE].seconds / 2, rtol=1e-6)
    np.testing.assert_allclose(by_name[ENCODE_AGAIN].seconds, by_name[ENCODE].seconds / 2, rtol=1e-6)
    assert by_name["items"].bytes == items.step_bytes
    frozen = make_plan(small_split, dataclasses.replace(config, schedule=ScheduleConfig(steps="solve", goal=goal)))
    assert (frozen.phases, frozen.solves) == ((), 1)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(plan_table(frozen))
    text = console.export_text()
    assert [line.split()[0] for line in text.splitlines() if "over " in line] == ["encode", "solve"]
    assert "Phases of gradient steps" not in text
    assert "a guess" in text


@pytest.mark.parametrize(("goal", "refits"), [("explicit", 2), pytest.param("whole_data", 0, marks=pytest.mark.slow)])
def test_a_plan_counts_the_solves_of_a_refit_and_on_which_rows(small_split, small_config, cache, goal, refits):
    # The step of the phase above, which is compiled by now.
    schedule = ScheduleConfig(goal=goal, trainable="top:1", epochs=3)
    plan = make_plan(small_split, dataclasses.replace(small_config, schedule=schedule, refit=True))
    names = [stage.name for stage in plan.stages if stage.solve]
    assert names == ["solve", "solve again", *["solve with validation rows"] * refits]
    if goal == "whole_data":
        kept = dataclasses.replace(small_config, schedule=dataclasses.replace(schedule, solve_again=False), refit=True)
        assert [stage.name for stage in make_plan(small_split, kept).stages if stage.solve] == ["solve"]
    frozen = make_plan(
        small_split,
        dataclasses.replace(small_config, schedule=dataclasses.replace(schedule, epochs=0), refit=True),
    )
    assert [stage.name for stage in frozen.stages if stage.solve] == ["solve", *names[2 : 2 + bool(refits)]]


def test_the_table_says_what_it_means(small_split, small_config, shallow_encoder):
    train = dataclasses.replace(small_config.train, head_epochs=0, trainable="top:1")
    encoder = dataclasses.replace(small_config.encoder, name=str(shallow_encoder))
    plan = make_plan(small_split, dataclasses.replace(small_config, train=train, encoder=encoder))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(plan_table(plan))
    text = console.export_text()
    assert "phase encoder" in text
    assert "solve" not in text
    assert "phase head" not in text
    assert f"{plan.phases[0].tokens_per_epoch:,}" in text
    assert f"{plan.parameters:,} parameters in all" in " ".join(text.split())
