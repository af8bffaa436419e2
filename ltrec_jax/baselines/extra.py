"""Libraries that only some baselines need: imported when used, and named with their extra where they are missing."""

import importlib
from typing import Any

from ltrec_jax.errors import UserError


def needed(module: str, purpose: str) -> Any:
    """The module; where it is not installed, a `UserError` that says what for and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {module.partition('.')[0]}, which is not installed. Install the extra: "
            "pip install 'ltrec-jax[baselines]'."
        ) from error
