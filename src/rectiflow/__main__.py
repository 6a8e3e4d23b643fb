"""Train and sample your own generative model: rectified flow, diffusion and everything around it."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.metadata import version

import tyro

from rectiflow.base.errors import InputError, near_miss, unknown
from rectiflow.base.job import follows
from rectiflow.base.memory_full import told_if_full
from rectiflow.cli.average import Average
from rectiflow.cli.compare import Compare
from rectiflow.cli.data import Data
from rectiflow.cli.doctor import Doctor
from rectiflow.cli.encode import Encode
from rectiflow.cli.evaluate import Evaluate
from rectiflow.cli.export import Export
from rectiflow.cli.info import Info
from rectiflow.cli.plan import Plan
from rectiflow.cli.sample import Sample
from rectiflow.cli.serve import Serve
from rectiflow.cli.train import Train

Command = Train | Plan | Sample | Serve | Evaluate | Compare | Encode | Export | Doctor | Info | Average | Data
COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "plan": Plan,
    "sample": Sample,
    "serve": Serve,
    "evaluate": Evaluate,
    "compare": Compare,
    "encode": Encode,
    "export": Export,
    "doctor": Doctor,
    "info": Info,
    "average": Average,
    "data": Data,
}
SHARED = (Train, Sample, Evaluate, Encode)  # of which each process of a job does its part


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. A user's mistake is one line on stderr and status 2.

    Of the processes of a job, which have the same arguments, the first one speaks, unless they agreed on another; what
    they do not share it does alone.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"rectiflow {version('rectiflow')}")
        return 0
    try:
        command = _parse(given or ["--help"])
        with told_if_full():
            return command() if isinstance(command, SHARED) or not follows() else 0
    except InputError as error:
        if error.speaks_for_all or not follows():
            print(f"rectiflow: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk that is full or a file that is gone, wherever it was met
        print(f"rectiflow: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rectiflow: stopped.", file=sys.stderr)
        return 130


def _parse(arguments: list[str]) -> Command:
    name = arguments[0]
    if not name.startswith("-") and name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    subcommands: dict[str, Callable[..., Command]] = {**COMMANDS}
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            if name in COMMANDS:
                return tyro.cli(COMMANDS[name], args=arguments[1:], prog=f"rectiflow {name}", use_underscores=False)
            return tyro.extras.subcommand_cli_from_dict(
                subcommands, args=arguments, prog="rectiflow", description=__doc__, use_underscores=False
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_one_line(box.getvalue(), arguments)) from None


def _one_line(box: str, arguments: list[str]) -> str:
    """The words of a parser's message without its frame, and the near miss of an option that does not exist."""
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]|-{3,}", " ", box).split())
    words = re.split(r"\(required\)|Argument helptext:|For full helptext|Got errors:", words)[0].strip()
    command = arguments[0] if arguments[0] in COMMANDS else ""
    if unknown_option := re.search(r"--[\w-]+", words) if "Unrecognized options" in words else None:
        known = [f"--{field.name}" for field in fields(COMMANDS[command])] if command else []
        words = f"unknown option '{unknown_option[0]}'.{near_miss(unknown_option[0], known)}"
    words = re.sub(r"^(Value error|Required options|Unrecognized options) ", "", words)
    return (
        f"{words.rstrip('.?')}{'?' if words.endswith('?') else '.'} See: {' '.join(['rectiflow', command, '--help'])}"
    )


if __name__ == "__main__":
    sys.exit(main())
