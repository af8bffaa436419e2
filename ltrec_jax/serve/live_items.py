"""The catalogue as it is now: a bundle's items and what was added, changed or removed since.

Items are numbers. A bundle's item keeps its internal id; a new or changed item gets the next number, and a changed
item's old number answers no more. Readers never wait; writers take turns (the caller sees to that). Out of scope:
searching (`spaces`), durability (`journal`).
"""

import difflib
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ltrec_jax.bundle import Bundle
from ltrec_jax.data import columns
from ltrec_jax.data.popularity import GROUPS
from ltrec_jax.errors import UserError, unknown_name
from ltrec_jax.model.two_tower import Vectors
from ltrec_jax.serve.index import Index, exact_index
from ltrec_jax.serve.placing import Placed, anchors
from ltrec_jax.serve.spaces import Rows, Space, unit
from ltrec_jax.solve import cold_start

NEW = "new"
"""The group of an item without training interactions."""
_EXAMPLES = 3


class LiveItems:
    """Ids, texts, attributes, groups and vectors of all items, by number.

    `score` is the space that a user's vector is multiplied with; `alike` and `meaning` are made when first asked for.
    """

    def __init__(self, bundle: Bundle, index: Index) -> None:
        self._bundle = bundle
        self.ids: list[str] = bundle.items[columns.ITEM_ID].astype(str).tolist()
        self.texts: list[str] = bundle.items[columns.TEXT].astype(str).tolist()
        self._number_of = {item_id: number for number, item_id in enumerate(self.ids)}
        self._successor: dict[int, int] = {}
        self._alive = np.ones(max(bundle.num_items, 1), bool)
        self._columns = bundle.items.drop(columns=[columns.ITEM_ID, columns.TEXT])
        self._numbers_by_value: dict[str, dict[str, np.ndarray]] = {}
        self._later: list[tuple[Mapping[str, Any], int, str]] = []  # attributes, training count, group
        vectors = bundle.vectors
        self._anchors = Rows(vectors.item_vectors.shape[1] + 1)  # of later items: [text bias | anchor]
        self.score = Space(index, vectors.item_vectors, vectors.item_biases, vectors.mu)

    @functools.cached_property
    def alike(self) -> Space:
        """Cosines of the vectors that score: item to item."""
        return _cosines(self._bundle.vectors.item_vectors)

    @functools.cached_property
    def meaning(self) -> Space:
        """Cosines of text vectors: a query's text to items."""
        return _cosines(self._bundle.text_vectors)

    @property
    def attributes(self) -> list[str]:
        """Names of the columns that filters may use."""
        return [str(name) for name in self._columns.columns]

    @property
    def num_alive(self) -> int:
        """Items that can be recommended."""
        return len(self._number_of)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._number_of

    def number(self, item_id: str) -> int:
        """The number of a present item; an unknown id is a `UserError`."""
        found = self._number_of.get(item_id)
        if found is None:
            examples = ", ".join(repr(one) for one in list(self._number_of)[:_EXAMPLES]) or "none"
            raise UserError(f"Unknown item {item_id!r}. The catalogue has {self.num_alive} items, such as {examples}.")
        return found

    def named(self, name: str) -> str:
        """The id of the item that a person means: an id, or a text or its beginning ("Toy Story"), in any case.

        What fits no item or several is a `UserError` that shows some.
        """
        if name in self._number_of:
            return name
        asked = name.casefold().strip()
        texts = {item_id: self.texts[number].casefold() for item_id, number in self._number_of.items()}
        whole = [item_id for item_id, text in texts.items() if text == asked]
        begun = whole or [item_id for item_id, text in texts.items() if asked and text.startswith(asked)]
        if len(begun) == 1:
            return begun[0]
        if not begun:
            heads = {text[: len(asked) + 8]: item_id for item_id, text in texts.items()}
            near = [heads[one] for one in difflib.get_close_matches(asked, heads, n=_EXAMPLES, cutoff=0.5)]
            near = [item_id for item_id, text in texts.items() if asked and asked in text][:_EXAMPLES] or near
            hint = f" Do you mean {self._shown(near)}?" if near else " `ltrec serve` has a search."
            raise UserError(f"No item is called {name!r}.{hint}")
        raise UserError(
            f"{name!r} begins {len(begun)} items: {self._shown(begun[:_EXAMPLES])}. Say more, or give an id."
        )

    def _shown(self, item_ids: Sequence[str]) -> str:
        return "; ".join(f"{self.texts[self._number_of[one]]!r} (id {one})" for one in item_ids)

    def current(self, numbers: Iterable[int]) -> np.ndarray:
        """Numbers after changes: a changed item's old number becomes its newest one."""
        if not self._successor:
            return np.asarray(numbers, np.int64)
        found = np.array([int(number) for number in numbers], np.int64)
        for place, number in enumerate(found.tolist()):
            while number in self._successor:
                number = self._successor[number]
            found[place] = number
        return found

    def count(self, number: int) -> int:
        """Training interactions of an item."""
        base = self._bundle.num_items
        return int(self._bundle.counts[number]) if number < base else self._later[number - base][1]

    def counts(self, numbers: Iterable[int]) -> np.ndarray:
        """Training interactions, int64 [N]."""
        return np.array([self.count(int(number)) for number in numbers], np.int64)

    def dial_factors(self, numbers: int, tail: float, cold_gain: float) -> np.ndarray:
        """`cold_start.dial_factors` of the items 0 .. numbers - 1, float32."""
        later = [count for _, count, _ in self._later[: numbers - self._bundle.num_items]]
        counts = np.concatenate([self._bundle.counts, np.array(later, np.int64)])
        return cold_start.dial_factors(counts, tail_power=tail, cold_gain=cold_gain)

    def group(self, number: int) -> str:
        """head, mid, tail, or new for an item without training interactions."""
        base = self._bundle.num_items
        if number >= base:
            return self._later[number - base][2]
        return NEW if self._bundle.counts[number] == 0 else GROUPS[int(self._bundle.group[number])]

    def anchors(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(anchor [N, D], text bias [N]): what an item's text alone says."""
        numbers, bundle = np.asarray(numbers, np.int64), self._bundle
        late, at = numbers >= bundle.num_items, np.minimum(numbers, bundle.num_items - 1)
        if late.all():
            known_NxD = self._anchors.array[numbers - bundle.num_items]
            return known_NxD[:, 1:], known_NxD[:, 0]
        anchor_NxD, bias_N = anchors(bundle.head, bundle.text_vectors[at])
        if bundle.words is not None:
            more_NxD, more_N = bundle.words.of_items(at)
            anchor_NxD, bias_N = anchor_NxD + more_NxD, bias_N + more_N
        known_NxD = self._anchors.array[numbers[late] - bundle.num_items]
        anchor_NxD[late], bias_N[late] = known_NxD[:, 1:], known_NxD[:, 0]
        return anchor_NxD, bias_N

    def check_attributes(self, attributes: Iterable[str]) -> None:
        """A name that is not a column of the catalogue is a `UserError`."""
        for name in attributes:
            if name not in self._columns.columns:
                raise unknown_name("attribute", name, self.attributes)

    def put(self, item_id: str, text: str, attributes: Mapping[str, Any], placed: Placed, row: int = 0) -> bool:
        """Add an item, or change a present one's text and attributes; True if it is new.

        A changed item keeps what behaviour taught about it: q = new anchor + (old q - old anchor). An attribute that
        the catalogue does not have is a `UserError`.
        """
        self.check_attributes(attributes)
        q, bias, count, group = placed.anchor_KxD[row], float(placed.bias_K[row]), 0, NEW
        old = self._number_of.get(item_id)
        if old is not None:
            (q_old,), (b_old,) = self.score.rows(np.array([old]))
            (anchor_old,), (text_bias_old,) = self.anchors(np.array([old]))
            q, bias = q + (q_old - anchor_old), bias + float(b_old - text_bias_old)
            count, group = self.count(old), self.group(old)
            attributes = {**self.attributes_of(old), **attributes}
        spaces, number = (self.score, self.alike, self.meaning), len(self.ids)
        if number >= len(self._alive):
            self._alive = np.concatenate([self._alive, np.zeros_like(self._alive)])
        self._later.append((dict(attributes), count, group))
        self.texts.append(text)
        self._anchors.append(np.insert(placed.anchor_KxD[row], 0, placed.bias_K[row]))
        for space, vector, offset in zip(spaces, (q, q, placed.text_KxE[row]), (bias, 0.0, 0.0), strict=True):
            space.append(vector, offset)
        self.ids.append(item_id)
        if old is not None:
            self._successor[old] = number
            self._alive[old] = False
        self._alive[number] = True
        self._number_of[item_id] = number
        self._numbers_by_value.clear()
        return old is None

    def remove(self, item_id: str) -> None:
        """Take an item out; an unknown id is a `UserError`."""
        number = self.number(item_id)
        self._alive[number] = False
        del self._number_of[item_id]

    def attributes_of(self, number: int) -> dict[str, Any]:
        """An item's attributes as plain values; missing ones are left out."""
        base = self._bundle.num_items
        if number >= base:
            return dict(self._later[number - base][0])
        row = self._columns.iloc[number]
        return {str(name): _plain(value) for name, value in row.items() if not _missing(value)}

    def allowed(
        self, filters: Mapping[str, Sequence[str]], allow: Sequence[str] | None = None, deny: Sequence[str] = ()
    ) -> np.ndarray:
        """Which numbers may be listed, bool [numbers]: present, with one of the values of every filtered attribute, in
        `allow` (None: no such list) and not in `deny`.

        A cell with several values ("Comedy|Drama", a list) matches by each of them. An unknown attribute is a
        `UserError`; unknown ids and values match nothing.
        """
        mask = self._alive[: len(self.ids)].copy()
        for name, values in filters.items():
            mask &= self._with_value(name, values)
        if allow is not None:
            mask &= self._named(allow)
        if deny:
            mask &= ~self._named(deny)
        return mask

    def _named(self, item_ids: Sequence[str]) -> np.ndarray:
        mask = np.zeros(len(self.ids), bool)
        mask[[self._number_of[one] for one in item_ids if one in self._number_of]] = True
        return mask

    def _with_value(self, name: str, values: Sequence[str]) -> np.ndarray:
        self.check_attributes([name])
        known = self._numbers_by_value.get(name)
        if known is None:
            # Made when a column is first filtered by, and again after an item came or changed.
            gathered: dict[str, list[int]] = {}
            cells = [*self._columns[name].tolist(), *(attributes.get(name) for attributes, *_ in self._later)]
            for number, cell in enumerate(cells):
                for value in _values(cell):
                    gathered.setdefault(value, []).append(number)
            known = {value: np.array(numbers) for value, numbers in gathered.items()}
            self._numbers_by_value[name] = known
        mask = np.zeros(len(self.ids), bool)
        for value in values:
            mask[known.get(value, np.zeros(0, np.int64))] = True
        return mask


def _cosines(rows_NxD: np.ndarray) -> Space:
    """A space whose scores are cosines. Half the memory: the order of near neighbours bears the rounding."""
    zeros = np.zeros(len(rows_NxD), np.float32)
    nobody = np.zeros((0, rows_NxD.shape[1]), np.float32)
    index = exact_index(Vectors(0.0, nobody, zeros[:0], unit(rows_NxD), zeros), "bfloat16")
    return Space(index, rows_NxD, zeros, cosine=True)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA or value is pd.NaT


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _values(cell: Any) -> list[str]:
    if isinstance(cell, list | tuple | np.ndarray):
        return [str(one) for one in cell]
    if _missing(cell):
        return []
    if isinstance(cell, float) and cell.is_integer():
        return [str(int(cell))]
    text = str(cell)
    return list(dict.fromkeys([text, *(part.strip() for part in text.split("|"))]))
