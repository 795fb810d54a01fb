"""What makes a command, and the arguments that several of them take."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from sched_profiler.errors import MissingExtraError, SchedProfilerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Command", "add_json", "add_logs", "add_skip_invalid", "count", "needing", "writing"]


@attrs.frozen(kw_only=True)
class Command:
    """One of the things that `sched-profiler` does.

    Attributes:
        name: what it is called by.
        purpose: what it does, in a sentence.
        examples: calls, each with what it does on an indented line below; in its help, `%(prog)s`
            is the program with the name of the command.
        add_arguments: adds its arguments to a parser.
        run: does it, and tells whether all is well with what it looked at. It imports only now what
            the base install lacks or what no other command needs: help is to be quick.
    """

    name: str
    purpose: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], bool]


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Add the logs that a command reads."""
    parser.add_argument(
        "logs",
        nargs="+",
        metavar="LOG",
        help="a log: a file, a folder, a pattern with wildcards, or a URL of any of these; several "
        "are taken together",
    )


def add_skip_invalid(parser: argparse.ArgumentParser) -> None:
    """Add the option to read a damaged log."""
    parser.add_argument(
        "--skip-invalid", action="store_true", help="skip and count lines that hold no record"
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option to print for a program."""
    parser.add_argument("--json", action="store_true", help=f"print the {what} as JSON")


def count(text: str) -> int:
    """Return the number of things that an argument says."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be; expected a whole number from 0 on")
    return int(text)


@contextmanager
def needing(part: str, extra: str) -> Iterator[None]:
    """Say how to install what the block cannot import, which an extra of ours brings."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sched_profiler"):
            raise
        raise MissingExtraError(part, error, extra=extra) from None


@contextmanager
def writing(place: Path, option: str) -> Iterator[None]:
    """Say what to do about a file that the block cannot write.

    Args:
        place: the file or folder that the user named.
        option: by which it was named.
    """
    try:
        yield
    except OSError as error:
        raise SchedProfilerError(
            f"cannot write {place}: {error.strerror or error}; name another {option}"
        ) from None
