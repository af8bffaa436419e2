"""The teaching notebooks: how each is kept (fast), and that each runs from a clean kernel (slow)."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

from ltrec_jax import cli
from ltrec_jax.commands.notebooks import Notebooks
from ltrec_jax.errors import UserError

FOLDER = Path(__file__).parent.parent / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST_BYTES, LONGEST_CELL = 400_000, 20
COVER_BYTES = 40_000

each_book = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(path) for output in cell.outputs]


def links(text: str) -> list[str]:
    """Targets of Markdown links and pictures that are files of this checkout."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]


def test_numbers_run_from_01_each_once():
    numbers = [int(path.name.split("_")[0]) for path in BOOKS]
    assert numbers[0] == 1
    assert len(set(numbers)) == len(numbers)
    assert [path.name[:3] for path in BOOKS] == [f"{number:02d}_" for number in numbers]


@each_book
def test_files_are_small_and_cells_are_short(path):
    nbformat.validate(read(path))
    assert path.stat().st_size < LARGEST_BYTES
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


@each_book
def test_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for output in outputs(path):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
    assert any("image/png" in output.get("data", {}) for output in outputs(path)), "a chapter shows a picture"


@each_book
def test_nothing_of_the_machine_is_kept(path):
    book = read(path)
    assert set(book.metadata) == {"kernelspec", "language_info"}
    assert book.metadata.language_info == {"name": "python"}
    assert not any(cell.metadata for cell in book.cells)
    assert not any(output.get("metadata") for output in outputs(path))
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.~])/(?:tmp|home|root|work|var|Users)/|[A-Z]:\\\\", text)
    assert not re.search(r"\b[A-Z]\w+Warning\b", text)


@each_book
def test_a_chapter_opens_with_its_place_and_ends_with_exercises(path):
    cells = read(path).cells
    first, last, number = cells[0], cells[-1], path.name[:2]
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith(f"# {int(number)}. ")
    assert "You will learn" in first.source
    assert "Time:" in first.source
    assert f"(pictures/where_{number}.svg)" in first.source
    assert re.search(r"^## Exercises$", last.source, re.MULTILINE)
    assert "(../ltrec_jax/" in last.source, "links to the source that it explains"


@each_book
def test_links_point_at_files(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    missing = [target for target in links(text) if not (FOLDER / target).exists()]
    # A chapter may name the next one before that is written.
    assert [target for target in missing if not re.fullmatch(r"0\d_\w+\.ipynb", target)] == []


def test_the_contents_page_shows_every_chapter_and_its_picture():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in BOOKS:
        cover = FOLDER / "pictures" / f"cover_{path.name[:2]}.png"
        assert {path.name, f"pictures/{cover.name}"} <= set(links(page))
        assert cover.stat().st_size < COVER_BYTES
    assert "(notebooks/README.md)" in (FOLDER.parent / "README.md").read_text(encoding="utf-8")


def test_the_command_starts_jupyterlab_in_the_folder(monkeypatch):
    started = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append((program, arguments)))
    assert cli.main(["notebooks", "--no-browser", "--port", "8890"]) == 0
    flags = [f"--notebook-dir={FOLDER}", "--port=8890", "--no-browser"]
    assert started == [(sys.executable, [sys.executable, "-m", "jupyterlab", *flags])]


def test_the_command_says_what_is_missing(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no notebooks in .*checkout"):
        Notebooks(directory=tmp_path).run([])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ltrec-jax\[notebooks\]'"):
        Notebooks().run([])


@pytest.mark.slow
@each_book
def test_runs_from_a_clean_kernel(path):
    from nbclient import NotebookClient

    book = read(path)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
