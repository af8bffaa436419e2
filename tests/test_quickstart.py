"""The main job in one call, on a small dataset: a run, a report, a list; and what suits clicks."""

import dataclasses

import numpy as np
import pytest

from ltrec_jax import quickstart
from ltrec_jax.bundle import Bundle


def on(directory, dataset, config):
    dataset.save(directory / "data")
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, dataset=str(directory / "data"), split="random")
    )


@pytest.mark.slow
def test_one_call_trains_evaluates_and_shows_a_list(tmp_path, small_dataset, small_config, capsys):
    train = dataclasses.replace(small_config.train, head_epochs=2, epochs=0)
    config = on(tmp_path, small_dataset, dataclasses.replace(small_config, train=train))
    page = quickstart.quickstart(tmp_path / "run", config)
    assert page == tmp_path / "run" / "report.html"
    assert page.is_file()
    assert (tmp_path / "run" / "report.json").is_file()
    assert Bundle.load(tmp_path / "run" / "bundle").num_items == small_dataset.num_items
    printed = capsys.readouterr()
    assert "Recommended for user u" in printed.out
    assert "Try next:  ltrec recommend" in printed.out
    assert "on " + str(tmp_path / "data") in printed.err


def test_clicks_are_solved_for_as_lists_and_ratings_as_asked(tmp_path, small_dataset, small_config):
    config = on(tmp_path / "rated", small_dataset, small_config)
    assert quickstart._suited(config) == config
    events = small_dataset.interactions
    clicks = dataclasses.replace(events, rating=np.ones_like(events.rating))
    alike = on(tmp_path / "clicked", dataclasses.replace(small_dataset, interactions=clicks), small_config)
    found = quickstart._suited(alike)
    assert found.schedule.goal == "whole_data"
    assert found == dataclasses.replace(alike, schedule=dataclasses.replace(alike.schedule, goal="whole_data"))
