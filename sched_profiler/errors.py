"""The errors this package raises on purpose.

Each carries a message that a user can act on: the value, the place and the remedy. The command
line prints it without a traceback and exits with 2.
"""

from __future__ import annotations

__all__ = [
    "LogError",
    "MissingExtraError",
    "RecordError",
    "SchedProfilerError",
    "SchemaVersionError",
    "SettingError",
    "SinkUnavailableError",
    "UploadError",
    "counted",
    "how_to_install",
    "printable",
    "shown",
]


class SchedProfilerError(Exception):
    """Base of every error raised on purpose."""


class SettingError(SchedProfilerError):
    """An environment variable or an argument has a value that cannot be used."""


class MissingExtraError(SchedProfilerError):
    """Something needs a package that only an extra of ours installs."""

    def __init__(self, part: str, missing: ModuleNotFoundError, *, extra: str) -> None:
        """Say that `part` lacks a module, and which extra has it."""
        super().__init__(
            f"{part} needs {missing.name}, which is not installed; "
            f"install it with: {how_to_install(extra)}"
        )


class RecordError(SchedProfilerError):
    """A value is not a batch record: a field is missing, of a wrong type or out of range."""


class SchemaVersionError(RecordError):
    """A record is of a schema that is newer than this package."""


class LogError(SchedProfilerError):
    """A log cannot be read: missing, empty, or a line that holds no record."""


class SinkUnavailableError(SchedProfilerError, OSError):
    """A sink cannot bring records home for now, such as on a full disk; it is to be asked again."""


class UploadError(SchedProfilerError):
    """A file did not arrive in a store; the message holds no credential."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with what it counts; the plural adds an s, unless it is another."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def how_to_install(extra: str) -> str:
    """Return how an extra of ours is installed: not by name, since no package index has us yet."""
    return f'pip install ".[{extra}]" in a checkout of sched_profiler'


def printable(text: str) -> str:
    """Return text as one line that any terminal takes, whatever is in it.

    Logs, manifests and names of files are somebody's input: they may hold line feeds, what moves a
    cursor, or half a surrogate pair.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """Return a value as a message shows it: short, whatever it is."""
    try:
        text = repr(value)
    except RecursionError:
        # It takes more to print a nested value than to parse it.
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 40 else text[:37] + "..."  # noqa: PLR2004 - a readable message
