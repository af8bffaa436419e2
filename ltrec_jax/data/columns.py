"""Names of the columns in every dataset directory and data frame. Constants, so that a typo is an import error."""

import numpy as np

USER = "user"
"""Internal user id, int32, 0..U-1: the row of the user in users.parquet."""
ITEM = "item"
"""Internal item id, int32, 0..I-1: the row of the item in items.parquet."""
RATING = "rating"
"""float32, in the dataset's own scale (1.0 for a click)."""
TIMESTAMP = "timestamp"
"""int64, seconds since 1970 UTC; 0 in every row where the dataset has none."""

USER_ID = "user_id"
"""The user's external id, a string, in users.parquet."""
ITEM_ID = "item_id"
"""The item's external id, a string, in items.parquet."""
TEXT = "text"
"""The item's or user's rendered text, where one has been rendered."""

DTYPES: dict[str, type[np.generic]] = {USER: np.int32, ITEM: np.int32, RATING: np.float32, TIMESTAMP: np.int64}
"""Of the interactions, in the order of their columns."""
INTERACTION_COLUMNS = tuple(DTYPES)
EVENT_COLUMNS = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
"""Raw events before coding: external ids instead of internal ones."""
