"""The dataset directory: the fingerprint says what the cells hold, however they are stored."""

import pandas as pd
import pytest

from ltrec_jax.data import directory

TEXTS = ["a", "é", "日本", "", "two\nlines", "🙂", "z"]


@pytest.mark.parametrize("piece", [3, 100])
def test_the_fingerprint_does_not_depend_on_how_texts_are_stored(piece, monkeypatch):
    monkeypatch.setattr(directory, "_PIECE", piece)
    same = {
        directory.fingerprint([b"x"], pd.DataFrame({"t": cells}), pd.DataFrame({"t": cells}))
        for cells in (
            pd.Series(TEXTS, dtype=object),
            pd.Series(TEXTS, dtype="str"),
            pd.Series(TEXTS, dtype="string[python]"),
            pd.Series(["before", *TEXTS, "after"], dtype="str").iloc[1:-1],
            pd.concat([pd.Series(TEXTS[:4], dtype="str"), pd.Series(TEXTS[4:], dtype="str")]),
        )
    }
    assert len(same) == 1


@pytest.mark.parametrize("other", [["b", "a"], ["ab", ""], ["a", None], ["a", "b", "b"]])
def test_the_fingerprint_differs_where_a_cell_does(other):
    empty = pd.DataFrame({"t": []})
    first, second = (
        directory.fingerprint([], pd.DataFrame({"t": pd.Series(texts, dtype="str")}), empty)
        for texts in (["a", "b"], other)
    )
    assert first != second
