"""The page, the tables and the verdict: nothing from outside, everything escaped, and true to the figures."""

import dataclasses
import io
import re

import numpy as np
import pytest
from rich.console import Console

from ltrec_jax.evaluation import html as page_module
from ltrec_jax.evaluation import plots, report, results, verdict

CURVE = [
    {"step": 1, "phase": "head", "epoch": 1.0, "train_rmse": 1.1},
    {"step": 1, "phase": "head", "epoch": 1.0, "validation_rmse": 1.2},
    {"step": 2, "phase": "encoder", "epoch": 1.0, "train_rmse": None, "validation_rmse": 1.0},
]


@dataclasses.dataclass(frozen=True)
class Recommended:
    text: str
    score: float = 4.25
    group: str = "tail"
    resembles: tuple[str, ...] = ("Alien (1979)",)


def evaluate(world, models, **options):
    options = {"positive_rating": 4.0, "block_users": 16} | options
    return report.evaluate(
        models, world.split, world.groups, world.counts.counts, primary=next(iter(models)), **options
    )


@pytest.fixture
def found(world):
    close = world.model(np.clip(world.truth, 1, 5) + 0.01)
    return evaluate(world, {"ours": close, "noise": world.random_model(1)})


def render(found, **parts):
    return page_module.render(found, **{"curve": [], "examples": {}, "settings": {}, "hardware": {}} | parts)


def test_the_page_loads_nothing_and_is_well_formed(found, page_text):
    page = render(
        found,
        curve=CURVE,
        examples={"7": [Recommended("Heat (1995)")]},
        settings={"train": {"learning_rate": 5e-5, "cutoffs": [10, 20]}},
        hardware={"device": "cpu"},
    )
    assert "http" not in page
    assert "//" not in re.sub(r"/\*.*?\*/", "", page)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    text = page_text(page)
    for expected in (
        "quiet",
        "Heat (1995)",
        "Alien (1979)",
        "train.learning_rate",
        "5e-05",
        "10, 20",
        "head",
        "95% interval",
    ):
        assert expected in text
    assert page.count("<svg") == 3
    assert 'name="viewport"' in page


def test_text_from_outside_is_escaped(world):
    evil = '$x^2$ & <script>alert("1")</script>' + 200 * "long "
    found = evaluate(world, {evil: world.random_model(), "other": world.random_model(1)})
    page = render(
        found,
        examples={evil: [Recommended(evil, group=evil, resembles=(evil,))]},
        settings={evil: evil},
        hardware={evil: evil},
        curve=[{"step": 1, "phase": evil, "epoch": 1.0, "train_rmse": 1.0}],
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "$x^2$" in re.sub(r"<!--.*?-->", "", plots.by_popularity(found, "rmse"), flags=re.DOTALL)


def test_pictures_take_the_colour_of_the_page(found):
    picture = plots.by_popularity(found, "rmse")
    assert picture.startswith("<svg")
    assert "currentColor" in picture
    assert "#010203" not in picture
    assert picture == plots.by_popularity(found, "rmse")


def test_a_picture_without_data_is_left_out(world):
    found = evaluate(world, {"ours": world.random_model()}, rating=False)
    assert plots.by_popularity(found, "rmse") == ""
    assert plots.learning_curve([]) == ""
    assert plots.learning_curve([{"step": 3, "gradient_norm": 1.0}]) == ""


def test_a_page_without_any_figure_says_so(world):
    found = evaluate(world, {"ours": world.random_model()}, rating=False, positive_rating=9.0)
    assert "has no figure" in render(found)
    assert found.headlines == ()
    assert found.table().startswith("▲")


def test_the_table_is_markdown_and_marks_what_is_worse(found):
    block = found.table().split("\n\n")[0].splitlines()
    assert block[0].startswith("| RMSE (lower is better) | overall")
    assert len({len(line) for line in block}) == 1
    ours, noise, counts = block[2:]
    assert "ours (ours)" in ours
    assert f"{found.models['ours'].overall['rmse'].value:.4f}" in ours
    assert "▼" in noise
    assert "▲" not in noise
    assert str(found.models["ours"].overall["rmse"].n) in counts


def test_eighty_columns_hold_the_quickstarts_tables(world):
    names = ("ltrec", "frozen text", "popularity", "biases only")
    models = {name: world.random_model(seed) for seed, name in enumerate(names)}
    stream = io.StringIO()
    report.print_report(evaluate(world, models), Console(file=stream, width=80))
    assert "few" in stream.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in stream.getvalue()


def test_the_terminal_shows_every_model_and_group(found):
    stream = io.StringIO()
    report.print_report(found, Console(file=stream, width=140))
    shown = stream.getvalue()
    for expected in (
        "RMSE on small, by hand",
        "nDCG@10",
        "ours",
        "noise",
        "head",
        "cold",
        "▼",
        "lower is better",
        "ranked apart",
        "a like is a rating of at least 4",
    ):
        assert expected in shown


def test_bold_is_for_one_model_alone(world):
    model = world.random_model()
    grid = evaluate(world, {"ours": model, "twin": model}).grid("rmse")
    assert not any(cell.best for _, cells in grid.rows for cell in cells)


def test_groups_of_users_are_shown_without_claims(found):
    grid = found.users_grid("rmse")
    assert grid.columns == ("quiet", "medium", "active", "niche", "mixed", "mainstream")
    assert [name for name, _ in grid.rows] == ["ours", "noise"]
    assert {cell.verdict for _, cells in grid.rows for cell in cells} == {""}
    assert all(cell.best for cell in grid.rows[0][1])
    assert sum(grid.counts[:3]) == sum(grid.counts[3:]) == found.models["ours"].overall["rmse"].n


def test_verdict_of_a_winner(found):
    first, second = verdict.verdict(found)
    assert first.startswith("ours reaches RMSE 0.01")
    assert "better than noise, the strongest other model" in first
    assert "What got worse" not in second


def test_verdict_of_a_loser_names_what_got_worse(world, found):
    turned = evaluate(world, {"noise": world.random_model(1), "close": world.model(np.clip(world.truth, 1, 5) + 0.01)})
    first, second = verdict.verdict(turned)
    assert "worse than close, the strongest other model" in first
    assert re.match(r"What got worse: (RMSE overall \(\+|nDCG@10 overall \(−)", second)
    assert "against close" in second


def test_verdict_of_twins_and_of_one_alone(world):
    model = world.random_model()
    first, second = verdict.verdict(evaluate(world, {"ours": model, "twin": model}))
    assert "not clearly different from twin" in first
    assert second.startswith("Nothing got clearly worse; no clear difference")
    assert verdict.verdict(evaluate(world, {"ours": model}))[1] == "There is no other model to compare it with."


def test_verdict_with_one_test_user_claims_nothing(new_world):
    world = new_world([0, 0, 1], [0, 1, 0], [5, 4, 3], [1])
    found = evaluate(world, {"ours": world.random_model(), "other": world.random_model(1)})
    first, second = verdict.verdict(found)
    assert "too few users to compare" in first
    assert second == "Too few users have test events for any comparison."


def test_the_page_shows_the_dial_examples_and_what_got_worse(world):
    model, tail = world.random_model(1), world.groups["tail"]
    close = world.model(np.clip(world.truth, 1, 5) + 0.01)
    turned = world.model(model.table + 100.0 * tail[None, :])
    found = evaluate(world, {"noise": model, "close": close}, dials={"noise": {0.0: model, 0.5: turned}}, ks=(3,))
    page = render(found)
    assert page.count("<svg") == 3
    assert "as the dial turns" in page
    assert 'class="worse">▼' in page
    assert "not found by noise" in page
    assert "noise finds no such item" in page
    assert "warm among warm" in page
    assert "warm among warm + tail among warm + cold among cold" in page
    winner = render(evaluate(world, {"close": close, "noise": model}))
    assert "clearly worse than any other model" in winner


def test_a_dial_without_a_tail_target_is_not_drawn(new_world):
    world = new_world([0, 0, 1, 1], [0, 1, 0, 1], [5, 5, 1, 1], [1, 2])
    model = world.random_model()
    assert plots.tail_dial(evaluate(world, {"ours": model}, positive_rating=9.0, dials={"ours": {0.0: model}})) == ""


@pytest.mark.parametrize(
    ("metric", "label", "direction"),
    [
        ("ndcg@10", "nDCG@10", "higher is better"),
        ("rmse_dr", "RMSE, doubly robust", "lower is better"),
        ("dcg_snips@5", "DCG@5, SNIPS", "higher is better"),
        ("popularity_lift", "Popularity lift", ""),
        ("logloss", "log-loss", "lower is better"),
    ],
)
def test_how_metrics_are_written(metric, label, direction):
    assert (results.label(metric), results.direction(metric)) == (label, direction)
