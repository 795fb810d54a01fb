"""Parsing lines many at a time."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from synthetic import batch, records, seed_record, write_log

from sched_profiler.analysis import lines
from sched_profiler.analysis.layout import SCHEMA
from sched_profiler.codec import encode
from sched_profiler.errors import LogError
from sched_profiler.reader import Block, Tally, decode_lines
from sched_profiler.record import BatchRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FIELDS = list(SCHEMA)


# Whatever the parser takes must be what the codec takes.


def block_of(data: bytes) -> Block:
    """Return a block as `read_blocks` would."""
    return Block("run.jsonl", 1, data.count(b"\n"), data)


def by_the_codec(block: Block) -> pl.DataFrame | None:
    """Return what the codec makes of a block, None if it refuses a line."""
    try:
        rows = decode_lines(block, range(block.num_lines), Tally(), lines._row)
        return lines._frame(rows, SCHEMA | {"line": pl.Int64()}).drop("line")
    except LogError:
        return None


def by_the_parser(block: Block) -> pl.DataFrame | None:
    """Return what the parser of many lines makes of a block, None if it leaves it to the codec."""
    return lines._parse_alike(block.data, block.num_lines, tuple(SCHEMA))


def in_the_manner_of(dumps: Callable[[Any], bytes], fields: Callable[..., Any]) -> bytes:
    """Return a log as a writer writes it, with those fields."""
    return b"".join(dumps(fields(one)) + b"\n" for one in records(100))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"".join(map(encode, records(100))), id="ours"),
        pytest.param(in_the_manner_of(orjson.dumps, seed_record), id="17 fields"),
        pytest.param(
            in_the_manner_of(orjson.dumps, partial(seed_record, measured=False)), id="15 fields"
        ),
        pytest.param(
            in_the_manner_of(lambda one: json.dumps(one).encode(), seed_record), id="with blanks"
        ),
        pytest.param(
            b"".join(map(encode, records(100))).replace(b"\n", b"\r\n"), id="from Windows"
        ),
        pytest.param(
            b"".join(encode(one)[:-2] + b',"new":[1,"x",null]}\n' for one in records(100)),
            id="with a newer field",
        ),
        pytest.param(
            b"".join(encode(batch(request_ids=["cmpl-1", "läuft"])) for _ in range(9)),
            id="request identifiers",
        ),
    ],
)
def test_the_parser_takes_ordinary_logs(data: bytes) -> None:
    """Else reading would be slow without anyone noticing."""
    block = block_of(data)
    rows = by_the_parser(block)
    assert rows is not None
    assert rows.equals(by_the_codec(block))


def test_lines_of_several_shapes_stay_in_order() -> None:
    """What a batch lacks is left out of its line; few lines of a shape are for the codec."""
    mixed = [
        batch(
            number,
            model_run_ms=None if number % 3 else 9.0,
            token_budget=7 if number % 99 else None,
        )
        for number in range(400)
    ]
    block = block_of(b"".join(map(encode, mixed)))
    assert by_the_parser(block) is None
    rows = lines.parse(block, Tally(), list(SCHEMA))
    assert rows.equals(by_the_codec(block))


def test_lines_that_are_none_are_found_among_several_shapes() -> None:
    """The first one is named, all are counted, and the others stay in order."""
    logged = [encode(batch(number, dp_rank=number % 2 or None)) for number in range(300)]
    logged[70] = logged[70].replace(b'"num_waiting_reqs":0', b'"num_waiting_reqs":"many"')
    logged[200] = b"broken\n"
    block = block_of(b"".join(logged))
    with pytest.raises(LogError, match=r"line 71 of run.jsonl: num_waiting_reqs is 'many'"):
        lines.parse(block, Tally(), ["batch_id"])
    tally = Tally()
    rows = lines.parse(block, tally, ["batch_id"], skip_invalid=True)
    assert rows["batch_id"].to_list() == [n for n in range(300) if n not in (70, 200)]
    assert tally.num_skipped_lines == 2


def test_only_the_columns_asked_for_are_returned() -> None:
    """In that order, and a field that is not recorded is null."""
    block = block_of(b"".join(map(encode, records(3))))
    rows = lines.parse(block, Tally(), ["num_finished_reqs", "batch_id"])
    assert rows.to_dict(as_series=False) == {
        "num_finished_reqs": [None] * 3,
        "batch_id": [0, 1, 2],
    }


@given(st.lists(strategies.records(), min_size=1, max_size=5))
def test_the_parser_agrees_with_the_codec_on_records(batches: list[BatchRecord]) -> None:
    """Any record at all comes out the same."""
    block = block_of(b"".join(map(encode, batches)))
    table = by_the_parser(block)
    if table is None:
        # It may refuse a text that looks like what it is lax about, which is slow but right.
        texts = "".join("".join([one.run_id or "", *(one.request_ids or [])]) for one in batches)
        is_odd = any(c in '"\\\\,:' or ord(c) < 32 for c in texts)
        has_exponent = any(b"e" in line for line in map(encode, batches))
        shapes = {tuple(json.loads(encode(one))) for one in batches}
        assert is_odd or has_exponent or len(shapes) > 1
    else:
        assert table.equals(by_the_codec(block))


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 65), 1 << 65)
    | st.floats()
    | st.sampled_from([0, 1, 2, -0.0, 1.0, 1e300, 1 << 31, "NaN", "1", "", [1], [None], ["a"]])
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def dump(pairs: list[tuple[str, Any]]) -> bytes:
    """Write an object whose keys may repeat, also NaN and infinity as Python writes them."""
    inside = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs)
    return f"{{{inside}}}\n".encode()


@st.composite
def damaged_fields(draw: st.DrawFn) -> bytes:
    """Return a line whose fields may have been tampered with."""
    pairs = list(orjson.loads(encode(batch(prefill=[5] * draw(st.integers(0, 1))))).items())
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(pairs) - 1))
        key = pairs[place][0]
        match draw(st.sampled_from(["replace", "null", "delete", "repeat", "add"])):
            case "replace":
                pairs[place] = (key, draw(_json))
            case "null":
                pairs[place] = (key, None)
            case "delete":
                del pairs[place]
            case "repeat":
                pairs.insert(draw(st.integers(0, len(pairs))), (key, draw(_json)))
            case "add":
                pairs.append((draw(st.sampled_from([*FIELDS, "x"])), draw(_json)))
    return dump(pairs)


_insertions = st.binary(max_size=2) | st.sampled_from(
    [b"\n", b" ", b"\r", b"{", b"}", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\\u0061"]
)


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    """Return a few lines that may have been tampered with, field by field and byte by byte."""
    data = b"".join(draw(st.lists(damaged_fields(), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["nothing", "insert", "delete", "move line feed"])):
            case "insert":
                data = data[:place] + draw(_insertions) + data[place:]
            case "delete":
                data = data[:place] + data[place + draw(st.integers(1, 4)) :]
            case "move line feed":
                data = (data[:place] + b"#" + data[place:]).replace(b"\n", b"", 1)
                data = data.replace(b"#", b"\n", 1)
    return data if data.endswith(b"\n") else data + b"\n"


@given(damaged_lines())
def test_the_parser_takes_nothing_that_the_codec_refuses(data: bytes) -> None:
    """Whatever is done to lines, the parser refuses them or makes of them what the codec does."""
    block = block_of(data)
    table = by_the_parser(block)
    if table is not None:
        expected = by_the_codec(block)
        assert expected is not None
        assert table.equals(expected)


_LINE = encode(batch(0, prefill=[5]))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_LINE[:-1] + _LINE + b"\n", id="two records in a line"),
        pytest.param(_LINE[:-1] + b"{\n" + _LINE[1:], id="a torn line"),
        pytest.param(b"\xef\xbb\xbf" + _LINE, id="byte order mark"),
        pytest.param(_LINE.replace(b'"avg_decode_chunk_size":1.0,', b""), id="missing number"),
        pytest.param(
            _LINE.replace(b'"avg_decode_chunk_size":1.0,', b"").replace(
                b'"schema_version":1', b'"x":{"avg_decode_chunk_size":1.0}'
            ),
            id="missing number with its key elsewhere",
        ),
        pytest.param(_LINE.replace(b'"kv_cache_usage":0.5', b'"kv_cache_usage":NaN'), id="NaN"),
        pytest.param(_LINE.replace(b'"schema_version":1', b'"x":Infinity'), id="ignored infinity"),
        pytest.param(_LINE.replace(b'"schema_version":1', b'"x":"\xff"'), id="not UTF-8"),
        pytest.param(_LINE.replace(b'"run"', b"7"), id="number for text"),
        pytest.param(_LINE.replace(b'"batch_id":0', b'"batch_id":null'), id="null for a number"),
        pytest.param(_LINE.replace(b"[5]", b"[null]"), id="null in a list"),
        pytest.param(_LINE.replace(b"[5]", b"[5.0]"), id="fraction in a list"),
        pytest.param(_LINE.replace(b'"batch_id":0', b'"batch_id":true'), id="truth for a number"),
        pytest.param(
            _LINE.replace(b'"batch_id":0', b'"batch_id":0,"batch_id":"x"'), id="repeated key"
        ),
        pytest.param(_LINE.replace(b'"run_id"', b'"\x00run_id"'), id="NUL in a key"),
        pytest.param(_LINE.replace(b'"run_id"', b'"run\t_id"'), id="tab in a key"),
    ],
)
def test_the_parser_refuses_what_it_is_known_to_be_lax_about(data: bytes) -> None:
    """Each of these is refused by the codec, and was found to pass one parser or another."""
    assert data != _LINE
    block = block_of(data)
    assert by_the_codec(block) is None
    assert by_the_parser(block) is None


def test_non_ascii_text_is_fast(tmp_path: Path) -> None:
    """Only bytes that are no text are suspicious."""
    block = block_of(write_log(tmp_path / "run.jsonl", records(3, run_id="läuft")).read_bytes())
    table = by_the_parser(block)
    assert table is not None
    assert table["run_id"].to_list() == ["läuft"] * 3
