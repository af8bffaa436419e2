"""What sentence-transformers notes beside a tokenizer: how much of a text is read, and whether in lower case.

Out of scope: what becomes of the tokens (`encoder.layout` reads pooling, normalisation and prompts).
"""

import dataclasses
from pathlib import Path

from ltrec_jax import storage
from ltrec_jax.errors import UserError

FILE_NAME = "sentence_bert_config.json"
# Old versions named the file after the model.
_OLD_NAMES = tuple(f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert", "xlm-roberta"))
_TASKS = ("feature-extraction", None)


@dataclasses.dataclass(frozen=True)
class SentenceConfig:
    """`max_length`: tokens of a text that are read (None: as many as can be); `lower_case`: texts are lowered first."""

    max_length: int | None = None
    lower_case: bool = False


def read_sentence_config(directory: Path) -> SentenceConfig:
    """Read the notes in a tokenizer's directory, if there are any; what is malformed is a `UserError` naming the file.

    Without a `max_seq_length` (newer versions write none) the tokenizer's `model_max_length` holds.
    """
    path = next((directory / name for name in (FILE_NAME, *_OLD_NAMES) if (directory / name).is_file()), None)
    raw = storage.read_json_object(path) if path else {}
    if raw.get("transformer_task") not in _TASKS:
        raise UserError(
            f"{path}: transformer_task = {raw['transformer_task']!r} is not supported (only {_TASKS[0]!r})."
        )
    lower_case = raw.get("do_lower_case")
    if lower_case not in (True, False, None):
        raise UserError(f"{path}: do_lower_case = {lower_case!r} is neither true nor false.")
    length = _length(raw.get("max_seq_length"), f"{path}: max_seq_length")
    tokenizer = directory / "tokenizer_config.json"
    if length is None and tokenizer.is_file():
        length = _length(storage.read_json_object(tokenizer).get("model_max_length"), f"{tokenizer}: model_max_length")
    return SentenceConfig(length, bool(lower_case))


def _length(value: object, name: str) -> int | None:
    # Tokenizers without a limit have 1e30, as an integer or a float.
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1):
        raise UserError(f"{name} = {value!r} is no number of tokens.")
    return None if value is None else int(value)
