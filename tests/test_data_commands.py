"""`ltrec data ...` on a user's own files, from prepare to anonymise."""

import pytest

from ltrec_jax import cli
from ltrec_jax.data.dataset import Dataset

EVENTS = "user,film,stars,when\nanna,1,4,10\nben,1,5,11\nanna,2,3,12\ncarl,3,9,13\n"
FILMS = "film,title\n1,Toy Story\n2,Heat\n3,Alien\n4,Never seen\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.csv").write_text(EVENTS)
    (tmp_path / "films.csv").write_text(FILMS)
    (tmp_path / "options.toml").write_text(
        'scale = [1, 5]\nmax_rejected = 0.5\n[columns]\nitem = "film"\nitem_key = "film"\ntimestamp = "when"\n'
    )
    return tmp_path


def prepare(*more):
    return cli.main(
        ["data", "prepare", "events.csv", "--items", "films.csv", "--config", "options.toml", "--out", "data", *more]
    )


def test_prepare_keeps_the_cold_catalogue_and_sets_bad_rows_aside(files, capsys):
    assert prepare() == 0
    assert "3 interactions, 2 users, 4 items" in capsys.readouterr().out
    assert Dataset.load(files / "data").num_items == 4
    assert (files / "data" / "rejected.parquet").is_file()


def test_flags_go_over_the_options_file(files, capsys):
    assert prepare("--options.scale", "1", "10") == 0
    assert "4 interactions, 3 users" in capsys.readouterr().out


def test_describe_writes_a_page_and_anonymise_leaves_no_name(files, capsys):
    assert prepare() == 0
    assert cli.main(["data", "describe", "data", "--page", "page.html"]) == 0
    assert "Popularity groups" in capsys.readouterr().out
    assert "<svg" in (files / "page.html").read_text()
    arguments = ["data", "anonymise", "data", "--out", "safe", "--salt", "secret.salt", "--new-salt", "-k", "2"]
    assert cli.main(arguments) == 0
    users = Dataset.load(files / "safe").users["user_id"]
    assert len(users) == 2
    assert not set(users) & {"anna", "ben"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "prepare", "absent.csv", "--out", "x"], "absent.csv"),
        (["data", "prepare", "events.csv", "--out", "x"], "film"),
        (["data", "prepare", "events.csv", "--config", "absent.toml", "--out", "x"], "Cannot read the options"),
        (["data", "describe", "no/such"], "not a dataset directory"),
    ],
)
def test_mistakes_are_one_line(files, capsys, arguments, message):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert not (files / "x").exists()
