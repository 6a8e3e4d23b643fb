"""Errors that a user can mend: one line that says what was expected, what came, and what to do."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user. The command line prints its message as one line, without a traceback.

    Attributes:
        speaks_for_all: whether, of a job's processes, the one that raised this is to say it (`ranks.joined`).
        said_elsewhere: whether another process of the job says it, or more of it.
    """

    speaks_for_all = False
    said_elsewhere = False


def near_miss(got: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to `got`, or the empty string."""
    close = difflib.get_close_matches(str(got), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(what: str, got: str, known: Iterable[str]) -> InputError:
    """Build the error for a name that does not exist: the name, the near miss, and every name there is.

    Args:
        what: the kind of thing named, for example "solver".
        got: the name received.
        known: the names there are.
    """
    names = [str(name) for name in known]
    return InputError(f"unknown {what} '{got}'.{near_miss(got, names)} Expected one of: {', '.join(names)}.")
