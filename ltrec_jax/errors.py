"""What goes wrong outside our code: one exception, whose message tells the user what to do.

The command line prints a `UserError` as one line and exits with code 2; every other exception is our bug and keeps
its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend (a file, a name, a value, a full disk). The message names it and says how."""


class StoppedError(UserError):
    """The work was asked to stop (SIGINT, SIGTERM); what it had done is saved and it can be resumed."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not one of `known`: suggests the nearest one and lists them all."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    nearest = next((n for n in names if near and n.lower() == near[0]), None)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names)}.")
