"""Where words for people go."""

from typing import TextIO

from rich.console import Console


def plain_console(quiet: bool = False, stderr: bool = False, file: TextIO | None = None) -> Console:
    """A console that prints texts as they are: brackets in the name of a folder are no markup, and no word is coloured.

    Args:
        quiet: print nothing.
        stderr: to the standard error.
        file: to this file in place of the standard output.
    """
    return Console(quiet=quiet, stderr=stderr, file=file, markup=False, emoji=False, highlight=False)
