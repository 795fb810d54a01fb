"""Turns a record into one line of a log and back, and gives out the schema of that line."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import orjson
from cattrs.fns import identity
from cattrs.gen import make_dict_unstructure_fn, override
from cattrs.preconf.orjson import make_converter

from sched_profiler.errors import RecordError, SchemaVersionError, shown
from sched_profiler.record import SCHEMA_VERSION, BatchRecord

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["decode", "encode", "json_object", "schema"]

_converter = make_converter()
# What a record holds is what JSON has words for: nothing needs to be converted.
_AS_IT_IS: dict[str, Any] = {
    field.name: override(unstruct_hook=identity) for field in attrs.fields(BatchRecord)
}
# Only the optional fields have a default, so "omit the default" leaves out exactly the unknown.
_to_dict = make_dict_unstructure_fn(
    BatchRecord, _converter, _cattrs_omit_if_default=True, **_AS_IT_IS
)
_REQUIRED = tuple(f.name for f in attrs.fields(BatchRecord) if f.default is attrs.NOTHING)
_FLOATS = tuple(f.name for f in attrs.fields(BatchRecord) if f.type in (float, float | None))

_floats_of = attrgetter(*_FLOATS)
_FLOAT_TYPES = {float, type(None)}


def encode(record: BatchRecord) -> bytes:
    """Return the record as one line of compact JSON, with its line feed.

    A float always carries a decimal point, so that text tools can tell 10 ms from 100 ms.

    Raises:
        RecordError: if a number is not finite, for which JSON has no word, or a value is of a type
            that JSON does not have.
    """
    fields = _to_dict(record)
    floats = _floats_of(record)
    # NaN or infinity make the sum so. A sum may overflow without them: then each is looked at.
    if not _FLOAT_TYPES.issuperset(map(type, floats)) or not isfinite(sum(filter(None, floats))):
        for name, value in zip(_FLOATS, floats, strict=True):
            if value is not None:
                fields[name] = _as_float(name, value)
    try:
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise RecordError(f"a value cannot be written as JSON ({error})") from None


def _as_float(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RecordError(f"{name} is {shown(value)}; expected a number") from None
    if not isfinite(number):
        raise RecordError(f"{name} is {number}; a log holds finite numbers only")
    return number


def decode(line: bytes | str) -> BatchRecord:
    """Return the record that one line of a log holds.

    Fields that this version does not know are ignored: adding one is a minor change.

    Raises:
        RecordError: if the line is no JSON object, is of a newer schema, lacks a field or has one
            of a wrong type; the message names the field, not the file and the line.
    """
    fields = json_object(line, "schema_version", SCHEMA_VERSION)
    # A fork of the original feature that measures scheduling only has neither key.
    fields.setdefault("model_run_duration_ms", None)
    fields.setdefault("total_step_duration_ms", None)
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        raise RecordError(f"lacks {', '.join(missing)}")
    _reject_wrong_types(fields)
    return _converter.structure(fields, BatchRecord)


def json_object(text: bytes | str, version_name: str, newest: int) -> dict[str, Any]:
    """Return the fields of a JSON object whose version is not newer than the one that is known.

    Raises:
        RecordError: if it is no JSON object, or is of a newer version.
    """
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(fields, dict):
        raise RecordError(f"a {type(fields).__name__} instead of a JSON object")
    version = fields.get(version_name)
    if type(version) is int and version > newest:
        raise SchemaVersionError(
            f"{version_name} {version} is newer than {newest}; upgrade sched-profiler"
        )
    return fields


def _reject_wrong_types(fields: dict[str, Any]) -> None:
    """Refuse what a converter would bend into shape, such as the text "3" or the count 2.5."""
    for name, (kinds, item_kind, expected) in _SHAPES.items():
        value = fields.get(name)
        if name not in fields or (type(value) in kinds and item_kind is None):
            continue
        if type(value) not in kinds:
            raise RecordError(f"{name} is {shown(value)}; expected {expected}")
        for item in value or ():
            if type(item) is not item_kind:
                raise RecordError(f"{name} holds {shown(item)}; expected {expected}")


_Shape = tuple[tuple[type, ...], type | None, str]
_SHAPE_OF_TYPE: dict[Any, _Shape] = {
    int: ((int,), None, "an integer"),
    float: ((float, int), None, "a number"),
    int | None: ((int, type(None)), None, "an integer or null"),
    float | None: ((float, int, type(None)), None, "a number or null"),
    str | None: ((str, type(None)), None, "a string or null"),
    list[int]: ((list,), int, "a list of integers"),
    list[str] | None: ((list, type(None)), str, "a list of strings or null"),
}
_SHAPES = {field.name: _SHAPE_OF_TYPE[field.type] for field in attrs.fields(BatchRecord)}


def _schema_folder() -> Traversable:
    installed = files("sched_profiler") / "schema"
    # In a source tree the schemas stand beside the package, where other tools look for them.
    return installed if installed.is_dir() else Path(__file__).parent.parent / "schema"


@functools.cache
def _schema_text(name: str) -> str:
    return (_schema_folder() / name).read_text(encoding="utf-8")


def schema(version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a log line, as a fresh dict.

    Raises:
        ValueError: if this package knows no such version.
    """
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema version {version} is unknown; known is {SCHEMA_VERSION}")
    loaded: dict[str, Any] = json.loads(_schema_text(f"batch-record-v{version}.schema.json"))
    return loaded
