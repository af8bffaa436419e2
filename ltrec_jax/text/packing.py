"""Many short texts in rows of one length: which text goes where (`pack`), and the rows themselves (`fill`).

Pure NumPy; no loop over tokens. Out of scope: what is encoded, and in how many calls.
"""

import numpy as np

from ltrec_jax.text.store import TokenStore


def pack(lengths_K: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and first column of each text, int32 [K] each: best-fit decreasing, deterministic.

    Longest first, each into the fullest row that still holds it. Rows with equal space are interchangeable, so they are
    kept on one stack per amount of space and the search is over amounts, not rows. A text longer than `row_length` is a
    `ValueError`; a text without tokens takes no space.
    """
    lengths = np.asarray(lengths_K, np.int64)
    if len(lengths) and int(lengths.max()) > row_length:
        raise ValueError(f"a text of {int(lengths.max())} tokens does not fit a row of {row_length}")
    row, start = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
    by_space: list[list[int]] = [[] for _ in range(row_length + 1)]
    occupied = 0  # bit s: some row has space s; the tightest fit is then a shift and a lowest set bit, not a search
    rows = 0
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        fitting = occupied >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            place = by_space[space].pop()
            if not by_space[space]:
                occupied ^= 1 << space
        else:
            space, place, rows = row_length, rows, rows + 1
        row[text], start[text] = place, row_length - space
        by_space[space - length].append(place)
        occupied |= 1 << (space - length)
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
