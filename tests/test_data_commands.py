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
    said = capsys.readouterr().out
    assert "3 interactions, 2 users, 4 items" in said
    assert "interactions: 4 rows read; 1 set aside in rejected.parquet (rating outside 1..5: 1)" in said
    assert Dataset.load(files / "data").num_items == 4
    assert (files / "data" / "rejected.parquet").is_file()


def test_flags_go_over_the_options_file(files, capsys):
    assert prepare("--scale", "1", "10") == 0
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


def test_strict_refuses_what_the_table_of_items_lacks(files, capsys):
    (files / "few.csv").write_text("film,title\n1,Toy Story\n")
    assert prepare("--items", "few.csv", "--scale", "1", "10", "--strict", "--engine", "duckdb") == 2
    assert "2 items of the interactions are missing" in capsys.readouterr().err
    assert not (files / "data").exists()


def test_prepare_says_what_each_step_kept(files, capsys):
    (files / "few.csv").write_text("film,title\n1,Toy Story\n")
    assert prepare("--items", "few.csv", "--scale", "1", "10", "--min-item-interactions", "2") == 0
    said = capsys.readouterr().out
    assert "interactions: 2 of 4 interactions" in said
    assert "2 items of the interactions are not in the table of items" in said


def test_describe_shows_a_split(files, capsys):
    assert prepare("--scale", "1", "10") == 0
    assert cli.main(["data", "describe", "data", "--split", "temporal"]) == 0
    said = capsys.readouterr().out
    assert "validation" in said
    assert "test" in said


def test_anonymise_takes_the_columns_and_replaces_when_asked(files, capsys):
    (files / "people.csv").write_text("user_id,age,motto\nanna,30,a\nben,31,b\n")
    assert prepare("--users", "people.csv") == 0
    arguments = ["data", "anonymise", "data", "--out", "safe", "--salt", "secret.salt", "--new-salt", "-k", "2"]
    arguments += ["--quasi-identifiers", "age"]
    assert cli.main(arguments) == 0
    assert sorted(Dataset.load(files / "safe").users["motto"]) == ["a", "b"]
    assert cli.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*arguments, "--replace"]) == 0


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
