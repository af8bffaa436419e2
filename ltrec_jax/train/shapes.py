"""Static shapes from a small set, so that a step compiles a handful of times."""

import numpy as np

# Units of capacity grow by these factors: a rare batch that does not fit takes the next one and compiles once more.
_RUNGS = (1.0, 1.125, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def rung(base: int, needed: int) -> int:
    """The smallest capacity of a fixed ladder above `base` that holds `needed`: few shapes, few compilations."""
    for factor in _RUNGS:
        if (capacity := int(np.ceil(base * factor))) >= needed:
            return capacity
    raise ValueError(f"a batch needs {needed} where {base} was foreseen")


def padded(values: np.ndarray, length: int, fill: float) -> np.ndarray:
    """The values [n], filled up to [length]."""
    out = np.full(length, fill, values.dtype)
    out[: len(values)] = values
    return out
