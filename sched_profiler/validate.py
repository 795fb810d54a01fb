"""Holds the lines of logs against the JSON Schema of their records; needs the extra `validate`.

The reference is `jsonschema`, and every reason comes from it. It takes a third of a millisecond a
record, so a line is first given to a decoder that is made from the same schema and knows less: it
accepts nothing that the reference would not, and whatever it does not accept the reference judges.
"""

from __future__ import annotations

import functools
import itertools
import json
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import msgspec
from jsonschema import Draft202012Validator

from sched_profiler.codec import schema
from sched_profiler.errors import counted
from sched_profiler.log_files import find_logs, logs_to_read
from sched_profiler.reader import Tally, empty_error, read_blocks, was_cut_by_a_crash
from sched_profiler.record import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sched_profiler.log_files import LogPath
    from sched_profiler.reader import Block

__all__ = ["Report", "Violation", "validate", "violations"]

_MANY_ONES = b"[1,1,1,1,1,1,1,1"
_ONES = b"1," * 10_000
_REASON_LENGTH = 200
_TOO_DEEP = "nested too deeply"


@attrs.frozen
class Violation:
    """One way in which one line is not a record.

    Attributes:
        log: name of the file.
        line: number of the line, counted from 1.
        path: where in the record, as a JSON path; `$` is the line itself.
        reason: what is wrong there.
    """

    log: str
    line: int
    path: str
    reason: str

    def __str__(self) -> str:
        """Return it as compilers do."""
        return f"{self.log}:{self.line}: {self.path}: {self.reason}"


@attrs.define
class Report:
    """What was found in all logs together."""

    num_records: int = 0
    """Lines that are neither blank nor half-written, valid or not."""
    num_invalid_records: int = 0
    """Those among them with a violation."""
    num_violations: int = 0
    num_half_written_lines: int = 0
    """Lines that their writer did not finish: no violation, see `reader`."""
    violations: list[Violation] = attrs.field(factory=list)
    """The first of them."""

    def __str__(self) -> str:
        """Return the counts, in words."""
        parts = [
            f"{counted(self.num_records, 'record')}, {self.num_invalid_records} of them invalid",
            counted(self.num_violations, "violation"),
        ]
        if len(self.violations) < self.num_violations:
            number = len(self.violations)
            parts.append(f"the first {'is' if number == 1 else f'{number} are'} shown")
        if self.num_half_written_lines:
            parts.append(counted(self.num_half_written_lines, "half-written line") + " left out")
        return "; ".join(parts)


def validate(
    *logs: LogPath, limit: int = 20, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Validate logs, each record against the schema of its own version, in bounded memory.

    Args:
        *logs: paths, folders, patterns or URLs.
        limit: how many violations to keep; all are counted.
        progress: called again and again with the number of bytes read so far and of all bytes, as
            they are on the disk.

    Raises:
        LogError: if a log cannot be read, or none holds anything.
    """
    total = sum(file.num_bytes for file in find_logs(*logs)) if progress else 0
    report = Report()
    tally = Tally()
    for file in logs_to_read(*logs):
        for block in read_blocks(file, tally):
            for violation in _violations_of_block(block, report, tally):
                report.num_violations += 1
                if len(report.violations) < limit:
                    report.violations.append(violation)
            if progress:
                progress(tally.num_bytes, total)
    report.num_half_written_lines = tally.num_half_written_lines
    if not report.num_records:
        raise empty_error(logs, tally)
    return report


def _violations_of_block(block: Block, report: Report, tally: Tally) -> Iterator[Violation]:
    lines = block.data.split(b"\n")
    lines[-1] = block.following
    accept = _strict_decoder().decode
    for index, line in enumerate(lines[:-1]):
        try:
            accept(_shortened(line))
        except _NOT_ACCEPTED:
            if not line.strip():
                continue
            found = violations(line)
            first = next(found, None)
            if first is not None:
                if was_cut_by_a_crash(line, lines[index + 1]):
                    tally.num_half_written_lines += 1
                    continue
                report.num_invalid_records += 1
                # Not as a list: a long line of zeros has millions.
                for path, reason in itertools.chain((first,), found):
                    yield Violation(block.log, block.line_number(index), path, reason)
        report.num_records += 1


def _shortened(line: bytes) -> bytes:
    """Return a line with one 1 for many, where it has such an array; no schema tells them apart.

    Nearly every decode is a chunk of 1: to read them one by one is most of the work. Whatever the
    array stands in, be it a string, is JSON and a record with either of them, or with neither.
    """
    begin = line.find(_MANY_ONES)
    end = line.find(b"]", begin)
    if begin < 0 or end < 0:
        return line
    ones = line[begin + 1 : end]
    return line[: begin + 2] + line[end:] if len(ones) % 2 and _ONES.startswith(ones) else line


def violations(line: bytes) -> Iterator[tuple[str, str]]:
    """Yield the path and the reason of every violation of one line, in the order of its fields."""
    try:
        fields = _parse(line)
    except _NotJsonError as error:
        yield "$", str(error)
        return
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    # To JSON Schema 2.0 is an integer, and true is none.
    if isinstance(version, int | float) and version > SCHEMA_VERSION and version % 1 == 0:
        reason = f"{version} is newer than {SCHEMA_VERSION}; upgrade sched-profiler"
        yield "$.schema_version", _short(reason)
        return
    # What keeps most lines from the strict decoder is a field of a newer minor version.
    try:
        _lenient_decoder().decode(line)
    except _NOT_ACCEPTED:
        yield from _judged(fields)


def _judged(fields: Any) -> Iterator[tuple[str, str]]:
    try:
        for error in _validator().iter_errors(fields):
            yield error.json_path, _short(error.message)
    except RecursionError:
        # A message shows the value, and it takes more to print a nested one than to parse it.
        yield "$", _TOO_DEEP


class _NotJsonError(Exception):
    """A line that is no JSON, or more than can be looked at; the message says how."""


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg} at column {error.colno})"
    except RecursionError:
        reason = _TOO_DEEP
    except ValueError:
        # Python's own limit to the digits of a number.
        reason = "a number has too many digits"
    raise _NotJsonError(reason)


def _refuse(word: str) -> None:
    """Refuse what Python takes for a number and JSON does not know."""
    raise _NotJsonError(f"not JSON ({word} is no number)")


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON_LENGTH else f"{reason[: _REASON_LENGTH - 3]}..."


@functools.cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


# What the decoders raise: for any line that is no record, for invalid UTF-8, for deep nesting.
_NOT_ACCEPTED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@functools.cache
def _strict_decoder() -> msgspec.json.Decoder[Any]:
    """Return a decoder that accepts records without further fields.

    In a further field it would pass over things that are no JSON, such as invalid UTF-8.
    """
    return msgspec.json.Decoder(_struct(schema(), forbid_unknown_fields=True))


@functools.cache
def _lenient_decoder() -> msgspec.json.Decoder[Any]:
    """Return a decoder for lines that are known to be JSON; further fields may be anything."""
    return msgspec.json.Decoder(_struct(schema(), forbid_unknown_fields=False))


def _struct(described: dict[str, Any], *, forbid_unknown_fields: bool) -> type[msgspec.Struct]:
    """Return the class of the records that a schema describes."""
    required = set(described["required"])
    fields: list[Any] = []
    for name, entry in described["properties"].items():
        kind = _type(entry)
        if name == "schema_version":
            kind = Annotated[int, msgspec.Meta(ge=0, le=SCHEMA_VERSION)] | None
        fields.append((name, kind) if name in required else (name, kind, None))
    return msgspec.defstruct(
        "Record", fields, kw_only=True, gc=False, forbid_unknown_fields=forbid_unknown_fields
    )


def _type(entry: dict[str, Any]) -> Any:
    """Return the type of what a part of a schema describes.

    Raises:
        KeyError: if the schema says something that is not known here and would be passed over.
    """
    entry = {key: value for key, value in entry.items() if key != "description"}
    named = entry.pop("type")
    limits = {_LIMITS[key]: entry.pop(key) for key in ("minimum", "maximum") if key in entry}
    items = entry.pop("items", None)
    if entry:
        raise KeyError(*entry)
    kinds = []
    for name in [named] if isinstance(named, str) else named:
        kind: Any = _TYPES[name] if name != "array" else list[_type(items)]  # type: ignore[misc]  # made at run time
        kinds.append(
            Annotated[kind, msgspec.Meta(**limits)] if name in _NUMBERS and limits else kind
        )
    return functools.reduce(lambda one, other: one | other, kinds)


_TYPES: dict[str, Any] = {"integer": int, "number": float, "string": str, "null": None}
_NUMBERS = ("integer", "number")
_LIMITS = {"minimum": "ge", "maximum": "le"}
