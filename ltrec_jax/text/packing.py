"""Many short texts in rows of one length: which text goes where (`pack`), and the rows themselves (`fill`).

Pure NumPy; no loop over tokens. Out of scope: what is encoded, and in how many calls.
"""

import numpy as np

from ltrec_jax.text.store import TokenStore


def pack(lengths_K: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and first column of each text, int32 [K] each: best-fit decreasing, deterministic.

    Longest first, each into the fullest row that still holds it. Rows of equal space are interchangeable, and so are
    texts of equal length: all texts of a length go through the amounts of space, fullest rows first, and a row takes as
    many of them as it holds, which is what one after the other would give. A text longer than `row_length` is a
    `ValueError`; a text without tokens takes no space.
    """
    lengths = np.asarray(lengths_K, np.int64)
    if len(lengths) and int(lengths.max()) > row_length:
        raise ValueError(f"a text of {int(lengths.max())} tokens does not fit a row of {row_length}")
    row, start = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
    by_space: list[list[np.ndarray]] = [[] for _ in range(row_length + 1)]
    occupied = 0  # bit s: some row has space s; the tightest fit is then a shift and a lowest set bit, not a search
    rows = 0
    order = np.argsort(-lengths, kind="stable")
    alike = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else []
    for texts in alike:
        length, placed = int(lengths[texts[0]]), 0
        while placed < len(texts):
            left = len(texts) - placed
            fitting = occupied >> length
            space = length + (fitting & -fitting).bit_length() - 1 if fitting else row_length
            each = space // length if length else left
            wanted = -(-left // each)
            if fitting:
                waiting = by_space[space]
                open_rows = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
                chosen, rest = open_rows[:wanted], open_rows[wanted:]
                by_space[space] = [rest] if len(rest) else []
                if not len(rest):
                    occupied ^= 1 << space
            else:
                chosen, rows = np.arange(rows, rows + wanted, dtype=np.int32), rows + wanted
            here = texts[placed : placed + each * len(chosen)]
            turn = np.arange(len(here))
            row[here], start[here] = chosen[turn // each], row_length - space + turn % each * length
            # The last row may have room for more of them.
            last = len(here) - each * (len(chosen) - 1)
            for taken, of in ((each, chosen[:-1]), (last, chosen[-1:])):
                if len(of):
                    by_space[space - taken * length].append(of)
                    occupied |= 1 << (space - taken * length)
            placed += len(here)
    return row, start


def fill(
    tokens: TokenStore,
    items_K: np.ndarray,
    row_K: np.ndarray,
    start_K: np.ndarray,
    num_rows: int,
    row_length: int,
    pad_id: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The packed rows, int32 [num_rows, row_length] each: token ids, slot (place in `items_K`; K = padding), position.

    Positions restart at 0 in every text; padding has `pad_id`, slot K and position 0.
    """
    items = np.asarray(items_K, np.int64)
    lengths = tokens.offsets[items + 1] - tokens.offsets[items]
    slot_T = np.repeat(np.arange(len(items)), lengths)
    position_T = np.arange(len(slot_T)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source_T = np.asarray(tokens.offsets)[items][slot_T] + position_T
    target_T = np.asarray(row_K, np.int64)[slot_T] * row_length + np.asarray(start_K, np.int64)[slot_T] + position_T
    ids = np.full(num_rows * row_length, pad_id, np.int32)
    slot = np.full(num_rows * row_length, len(items), np.int32)
    position = np.zeros(num_rows * row_length, np.int32)
    ids[target_T], slot[target_T], position[target_T] = tokens.values[source_T], slot_T, position_T
    shape = (num_rows, row_length)
    return ids.reshape(shape), slot.reshape(shape), position.reshape(shape)
