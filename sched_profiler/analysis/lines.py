"""Parses the lines of a log into rows, many at a time.

The lines of a log are much alike: the same keys in the same order. Cut at the colons, which is what
a parser of CSV does fastest, the pieces of each line are `value,"next key"`. If every piece is
exactly that, with a value of the type of its field, every line is a record; nothing is left to
chance. Lines of another shape are looked at among their like, and whatever is still no record in
this view is given to the codec: it alone decides what a record is, and can name the line that is
none.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import attrs
import polars as pl

from sched_profiler.analysis.layout import NULLABLE, REQUIRED, SCHEMA
from sched_profiler.errors import RecordError
from sched_profiler.reader import decode_lines
from sched_profiler.record import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sched_profiler.reader import Block, Tally
    from sched_profiler.record import BatchRecord

__all__ = ["parse"]

_KEY = re.compile(rb'"([^"\\\x00-\x1f]*)" ?:')

# JSON, as far as it is common in a log: no sign, no escape, no comma or colon in a text.
_NUMBER = r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?"
_TEXT = r'"[^"\\,:\x00-\x1f]*"'
_INTEGERS = r"\[(?:[1-9][0-9]{0,8}(?:,[1-9][0-9]{0,8})*)?\]"
_TEXTS = rf"\[(?:{_TEXT}(?:,{_TEXT})*)?\]"
_ANY = rf"(?:null|true|false|-?{_NUMBER}|{_TEXT})"

_FEW_LINES = 64
"""The codec reads so many before a parser of columns has begun."""


def parse(
    block: Block, tally: Tally, columns: Sequence[str], *, skip_invalid: bool = False
) -> pl.DataFrame:
    """Return the records of a block as rows, in the order of the lines.

    Args:
        block: lines of a log.
        tally: counts the lines that hold no record.
        columns: the fields to return; one that the log lacks is all null. The others are checked.
        skip_invalid: go on after a line that holds no record.

    Raises:
        LogError: naming log, line, value and remedy, if a line holds no record.
    """
    rows = _parse_alike(block.data, block.num_lines, tuple(columns))
    if rows is not None:
        return rows
    lines = block.data.split(b"\n")[:-1]
    shapes = defaultdict(list)
    for index, line in enumerate(lines):
        shapes[tuple(_KEY.findall(line))].append(index)
    parts, left = [], []
    for indices in shapes.values():
        rows = None
        if _FEW_LINES <= len(indices) < len(lines):
            data = b"".join(b"%b\n" % lines[index] for index in indices)
            rows = _parse_alike(data, len(indices), tuple(columns))
        if rows is None:
            left += indices
        else:
            parts.append(rows.with_columns(pl.Series(_LINE, indices, pl.Int64)))
    decoded = decode_lines(block, sorted(left), tally, _row, skip_invalid=skip_invalid)
    schema = {name: SCHEMA[name] for name in columns} | {_LINE: pl.Int64()}
    parts.append(_frame(decoded, schema))
    return pl.concat(parts).sort(_LINE).drop(_LINE)


_LINE = "line"
"""A column beside the fields."""


def _frame(decoded: Iterator[tuple[int, dict[str, Any]]], schema: dict[str, Any]) -> pl.DataFrame:
    lists: dict[str, list[Any]] = {name: [] for name in schema}
    for index, row in decoded:
        row[_LINE] = index
        for name, values in lists.items():
            values.append(row[name])
    return pl.DataFrame(lists, schema=schema)


def _row(record: BatchRecord) -> dict[str, Any]:
    """Return the fields of a record, all of which must fit their columns."""
    row = {name: getattr(record, name) for name in SCHEMA}
    for name, value in row.items():
        for number in value if isinstance(value, list) else (value,):
            bits = 31 if isinstance(value, list) else 63
            if isinstance(number, int) and not -(1 << bits) <= number < 1 << bits:
                raise RecordError(f"{name} is {number}; expected at most {(1 << bits) - 1}")
    return row


def _parse_alike(data: bytes, num_lines: int, columns: tuple[str, ...]) -> pl.DataFrame | None:
    """Return rows if every line has the keys of the first one and is a record, None otherwise."""
    first_line = data[: data.index(b"\n")]
    if b'": ' in first_line:
        # The habit of Python's json. No text that is taken has a comma, a colon or a quote in it,
        # so that none is changed by this.
        data = data.replace(b'": ', b'":').replace(b", ", b",")
    plan = _plan(tuple(_KEY.findall(first_line)), columns)
    # A byte order mark would be passed over.
    if plan is None or not data.startswith(b"{"):
        return None
    try:
        pieces = pl.read_csv(
            data, separator=":", has_header=False, quote_char=None, schema=plan.pieces
        )
    except pl.exceptions.PolarsError:
        return None
    if pieces.height != num_lines:
        return None
    pieces = pieces.with_columns(plan.texts).with_columns(plan.values)
    if not all(ok is True for ok in pieces.select(plan.checks).row(0)):
        return None
    lists = []
    for name in plan.lists:
        parsed = _integers(pieces.get_column(f"text {name}"))
        if parsed is None:
            return None
        lists.append(parsed.alias(f"value {name}"))
    return pieces.with_columns(lists).select(plan.results)


@attrs.frozen(eq=False)
class _Plan:
    """How to make rows of lines with certain keys, step by step."""

    pieces: dict[str, Any]
    """The names of the pieces that the colons make of a line."""
    texts: list[pl.Expr]
    """What stands for a value, by `text NAME`."""
    values: list[pl.Expr]
    """The values, by `value NAME`."""
    checks: list[pl.Expr]
    """What must be true: one expression, over all lines, for each piece."""
    lists: list[str]
    """Fields whose values are lists of integers, which are parsed apart."""
    results: list[pl.Expr]


@functools.lru_cache(maxsize=256)
def _plan(keys: tuple[bytes, ...], columns: tuple[str, ...]) -> _Plan | None:
    """Return how to parse lines with these keys, None if they cannot be those of a record."""
    try:
        names = [key.decode() for key in keys]
    except UnicodeDecodeError:
        return None
    if len(set(names)) < len(names) or not set(names) >= REQUIRED:
        return None
    plan = _Plan(
        pieces={str(number): pl.String() for number in range(len(names) + 1)},
        texts=[],
        values=[],
        checks=[pl.col("0") == f'{{"{names[0]}"'],
        lists=[],
        results=[],
    )
    for number, name in enumerate(names, 1):
        end = "}" if number == len(names) else f',"{names[number]}"'
        _plan_field(plan, name, pl.col(str(number)), end)
    found = set(names)
    for name in columns:
        value = pl.col(f"value {name}") if name in found else pl.lit(None, SCHEMA[name])
        plan.results.append(value.alias(name))
    return attrs.evolve(
        plan,
        checks=[
            check.all(ignore_nulls=False).alias(str(number))
            for number, check in enumerate(plan.checks)
        ],
    )


def _plan_field(plan: _Plan, name: str, piece: pl.Expr, end: str) -> None:
    kind = SCHEMA.get(name)
    if kind is None:
        plan.checks.append(
            piece.str.contains(f"^(?:{_ANY}|\\[(?:{_ANY}(?:,{_ANY})*)?\\]){re.escape(end)}$")
        )
        return
    # Whether it ends so is checked below.
    plan.texts.append(piece.str.head(-len(end)).alias(f"text {name}"))
    text, value = pl.col(f"text {name}"), pl.col(f"value {name}")
    is_null = text == "null" if name in NULLABLE else pl.lit(False)  # noqa: FBT003 - a value
    if kind == pl.Int64:
        plan.values.append(text.cast(pl.Int64, strict=False).alias(f"value {name}"))
        # The cast takes leading zeros and signs, both of which come before "1".
        is_plain = (text >= "1") | (text == "0")
        ok = value.is_not_null() & is_plain
        if name == "schema_version":
            ok &= value <= SCHEMA_VERSION
    elif kind == pl.Float64:
        plan.values.append(text.cast(pl.Float64, strict=False).alias(f"value {name}"))
        # The cast takes "1." and more. To look for the comma is far cheaper than for what follows.
        ok = value.is_not_null() & piece.str.contains(f"^{_NUMBER}[,}}]")
    elif kind == pl.String:
        plan.values.append(_unless_null(text.str.head(-1).str.slice(1), is_null, name))
        ok = text.str.contains(f"^{_TEXT}$")
    elif name in NULLABLE:
        plan.values.append(_unless_null(_split_texts(text), is_null, name))
        ok = text.str.contains(f"^{_TEXTS}$")
    else:
        plan.lists.append(name)
        ok = pl.lit(True)  # noqa: FBT003 - a value
    plan.checks.append(piece.str.ends_with(end) & (is_null | ok))


def _unless_null(value: pl.Expr, is_null: pl.Expr, name: str) -> pl.Expr:
    return pl.when(~is_null).then(value).alias(f"value {name}")


def _split_texts(text: pl.Expr) -> pl.Expr:
    inside = text.str.strip_prefix('["').str.strip_suffix('"]')
    return (
        pl.when(text == "[]")
        .then(pl.lit([], pl.List(pl.String)))
        .otherwise(inside.str.split('","'))
    )


def _integers(texts: pl.Series) -> pl.Series | None:
    """Return the lists of integers that texts stand for, None if one stands for none.

    Most batches have the same lists as others, of which each is parsed once.
    """
    different = texts.unique()
    if not different.str.contains(f"^{_INTEGERS}$").all():
        return None
    inside = different.str.head(-1).str.slice(1)
    lists = inside.str.split(",").list.eval(pl.element().filter(pl.element() != "").cast(pl.Int32))
    which = texts.cast(pl.Enum(different)).to_physical()
    return lists.gather(which)
