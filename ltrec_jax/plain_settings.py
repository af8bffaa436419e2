"""Settings as plain values: frozen dataclasses with documented fields, to and from dict, and to TOML with explanations.

Fields are annotated `Annotated[type, Doc("...")]`, with a `Rule` between where not every value of the type will do; a
field may be a dataclass of settings itself. Out of scope: which settings there are, and what their values may be
together (`config`, and whoever has settings of their own).
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from typing_extensions import Doc

from ltrec_jax.errors import UserError, unknown_name

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the value of a setting must be, in `words`, and whether it `holds` for a value."""

    words: str
    holds: Callable[[Any], bool]


def at_least(least: int, why: str = "") -> Rule:
    """The rule of a number that is not less; `why` is told with it."""
    return Rule(f"at least {least}{why}", lambda value: value >= least)


COUNT = at_least(1)
SHARE = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
AMOUNT = Rule("a finite number of at least 0", lambda value: 0 <= value < math.inf)
POSITIVE = Rule("above 0, and finite", lambda value: 0 < value < math.inf)


def check_rules(config: Any, where: str = "") -> None:
    """`UserError` about the first setting that breaks the rule of its field, with `where` before its name."""
    rules = _rules(config.__class__)
    for field in dataclasses.fields(config):
        name, value = f"{where}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_rules(value, f"{name}.")
        elif (rule := rules.get(field.name)) and not rule.holds(value):
            raise UserError(f"Setting {name} must be {rule.words}, not {value!r}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Settings as nested plain values (tuples become lists)."""
    return {
        key: to_dict(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for key, value in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def from_dict(values: Mapping[str, Any], kind: type[_T], where: str = "") -> _T:
    """Settings of a kind from nested plain values; missing fields take defaults, unknown ones and wrong types are named
    (`UserError`), with `where` before their names."""
    fields = field_types(kind)
    arguments = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in fields:
            raise unknown_name("setting", name, [f"{where}{known}" for known in fields])
        arguments[key] = _coerce(value, fields[key], name)
    return kind(**arguments)


def to_toml(config: Any) -> str:
    """TOML text with every field's explanation as a comment; parsed and by `from_dict` it gives the same settings."""
    top, tables = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tables.append("\n" + to_toml_table(field.name, value))
        else:
            top.append(_toml_line(type(config), field.name, value) + "\n")
    return "".join(top + tables)


def to_toml_table(name: str, value: Any) -> str:
    """One TOML table: a dataclass's explanation, its name in brackets, its fields, each with its explanation."""
    lines = [f"# {(value.__doc__ or '').strip()}", f"[{name}]"]
    lines += [_toml_line(type(value), f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return "\n".join(lines) + "\n"


def field_types(kind: type) -> dict[str, Any]:
    """Field name -> type (without its documentation) of a dataclass of settings."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def field_docs(kind: type) -> dict[str, str]:
    """Field name -> one-line documentation of a dataclass of settings."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: next((note.documentation for note in get_args(hint) if isinstance(note, Doc)), "")
        for name, hint in hints.items()
    }


@functools.cache
def _rules(kind: type) -> dict[str, Rule]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: note for name, hint in hints.items() for note in get_args(hint) if isinstance(note, Rule)}


def _toml_line(kind: type, name: str, value: Any) -> str:
    shown = f"{name} = {_toml_value(value)}"
    return f"{shown:<33} # {field_docs(kind)[name]}"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return repr(value)


def _coerce(value: Any, kind: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"Setting {name} is a table of settings, not {value!r}.")
        return from_dict(value, kind, where=f"{name}.")  # type: ignore[arg-type]
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind):
            raise unknown_name(name, str(value), [str(v) for v in get_args(kind)])
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"Setting {name} is a list, not {value!r}.")
        return tuple(_coerce(v, get_args(kind)[0], f"{name}[{n}]") for n, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, types.GenericAlias) or type(value) is not kind:
        raise UserError(f"Setting {name} must be of type {kind.__name__}, not {value!r}.")
    return value
