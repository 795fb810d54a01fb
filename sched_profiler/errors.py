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
            f'install it with: pip install "sched-profiler[{extra}]"'
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
