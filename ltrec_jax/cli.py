"""`ltrec`: which command, its arguments, and the exit code. The commands themselves are in `commands`.

Exit code 0: done. 2: a mistake or condition the user can mend, told in one line. 130: stopped by a signal, everything
saved. A traceback is always our own fault.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from ltrec_jax import memory
from ltrec_jax.commands import compare, data, encode, notebooks, pretrain, runs, serving, tune
from ltrec_jax.errors import StoppedError, UserError, unknown_name
from ltrec_jax.version import __version__

COMMANDS: Mapping[str, type[Any]] = {
    "quickstart": runs.Quickstart,
    "data list": data.List,
    "data fetch": data.Fetch,
    "data prepare": data.Prepare,
    "data describe": data.Describe,
    "data anonymise": data.Anonymise,
    "pretrain": pretrain.Pretrain,
    "encode": encode.Encode,
    "train": runs.Train,
    "tune": tune.Tune,
    "evaluate": runs.Evaluate,
    "compare": compare.Compare,
    "recommend": serving.Recommend,
    "serve": serving.Serve,
    "export": serving.Export,
    "notebooks": notebooks.Notebooks,
}
_TAKES_SETTINGS = (runs.Train, tune.Tune, pretrain.Pretrain, data.Prepare, notebooks.Notebooks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # Set before JAX starts: its C++ side otherwise reports every missing accelerator library.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Before a command imports JAX, whose threads keep the heaps they begin with.
    memory.keep_freed(one_heap=arguments[:1] != ["encode"])
    if arguments[:1] in (["--version"], ["-V"]):
        print(f"ltrec_jax {__version__}")
        return 0
    return guarded(lambda: _dispatch(arguments))


def guarded(call: Callable[[], None]) -> int:
    """Run a call; a `UserError` becomes one line on stderr and exit code 2, a stop by signal 130."""
    try:
        call()
    except UserError as error:
        print(f"ltrec: {error}", file=sys.stderr)
        return 130 if isinstance(error, StoppedError) else 2
    except KeyboardInterrupt:
        print("ltrec: stopped.", file=sys.stderr)
        return 130
    return 0


def _dispatch(arguments: list[str]) -> None:
    words = [word for word in arguments[:2] if not word.startswith("-")]
    name = " ".join(words) if " ".join(words) in COMMANDS else " ".join(words[:1])
    if name not in COMMANDS:
        family = {known: kind for known, kind in COMMANDS.items() if known.startswith(f"{name} ")} if name else COMMANDS
        asks = len(words) < 2 and (len(arguments) == len(words) or arguments[-1] in ("-h", "--help"))
        if family and asks:
            print(_overview(family))
            return
        raise unknown_name("command", " ".join(words) if family else name, family or COMMANDS)
    command, rest = COMMANDS[name], arguments[len(name.split()) :]
    if command in _TAKES_SETTINGS:
        parsed, settings = tyro.cli(command, args=rest, prog=f"ltrec {name}", return_unknown_args=True)
    else:
        parsed, settings = tyro.cli(command, args=rest, prog=f"ltrec {name}"), []
    parsed.run(settings)


def _overview(commands: Mapping[str, type[Any]]) -> str:
    width = max(map(len, commands))
    lines = ["ltrec: long-tail recommendation with language-model encoders", "", "Commands:"]
    lines += [f"  {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}" for name, command in commands.items()]
    return "\n".join(
        [*lines, "", "`ltrec COMMAND --help` shows the flags and an example. Start with: ltrec quickstart"]
    )


if __name__ == "__main__":
    sys.exit(main())
