"""Hypothesis strategies for records."""

from __future__ import annotations

import json
import string
from typing import Any

import attrs
from hypothesis import strategies as st

from sched_profiler.codec import encode
from sched_profiler.manifest import Run
from sched_profiler.record import BatchRecord, chunk_statistics

_chunks = st.lists(st.integers(1, 100_000), max_size=40) | st.integers(0, 40).map(lambda n: [1] * n)
_durations = st.floats(0, 1e7).map(lambda ms: round(ms, 3))
_counts = st.integers(0, 10**9)


@st.composite
def records(draw: st.DrawFn) -> BatchRecord:
    """Any record that an engine could leave."""
    prefill, decode = draw(_chunks), draw(_chunks)
    average, largest, smallest = chunk_statistics(prefill)
    model_ran = draw(st.booleans())
    schedule, queue, model = draw(_durations), draw(_durations), draw(_durations)
    return BatchRecord(
        batch_id=draw(_counts),
        timestamp=draw(st.floats(0, 4e9)),
        schedule_duration_ms=schedule,
        model_run_duration_ms=model if model_ran else None,
        total_step_duration_ms=round(schedule + queue + model, 3) if model_ran else None,
        num_prefill_reqs=len(prefill),
        num_decode_reqs=len(decode),
        total_scheduled_tokens=sum(prefill) + sum(decode),
        prefill_chunk_sizes=prefill,
        decode_chunk_sizes=decode,
        avg_prefill_chunk_size=average,
        max_prefill_chunk_size=largest,
        min_prefill_chunk_size=smallest,
        avg_decode_chunk_size=chunk_statistics(decode)[0],
        num_waiting_reqs=draw(_counts),
        num_running_reqs=draw(_counts),
        kv_cache_usage=draw(st.floats(0, 1)),
        **draw(st.fixed_dictionaries({}, optional=_optional_fields())),
    )


def _optional_fields() -> dict[str, st.SearchStrategy[Any]]:
    by_type = {
        int | None: _counts,
        float | None: _durations,
        str | None: st.text(max_size=12),
        list[str] | None: st.lists(st.text(max_size=8), max_size=5),
    }
    fields = {
        field.name: by_type[field.type]
        for field in attrs.fields(BatchRecord)
        if field.default is None
    }
    fields["schema_version"] = st.just(1)
    return fields


# Numbers, and what some programs take for numbers, as they may stand in a line.
_tokens = st.sampled_from(
    [
        *(
            "0",
            "-0",
            "0.0",
            "-0.0",
            "1",
            "1.0",
            "1e0",
            "1E2",
            "-1",
            "-1.0",
            "0.5",
            "1.5",
            "2",
            "2.0",
        ),
        *("01", "1.", ".5", "+1", "-", "1e", "0x1", "1_000", "true", "false", "null", "tru", ""),
        *("NaN", "Infinity", "-Infinity", "nan", "1e400", "-1e400", "1e-400", "1e30", "-1e30"),
        *(
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551616",
            "-9223372036854775809",
        ),
        *("0.99999999999999999999", "1.00000000000000000001", "9007199254740993.0"),
        *("9" * 400, "-" + "9" * 400, "9" * 4300, "9" * 4301, "1" + "0" * 5000, "9" * 400 + ".5"),
        *('"\\ud800"', '"\\q"', '"\x01"', '"\\u00e9"', '"\x7f"', '"a', "[1,]", "[,1]", "{}", "[]"),
        *("[1,1.0]", "[1,1.5]", "[1,null]", '[1,"1"]', "[0]", "[true]", "[1e2]", "[[1]]", '["a"]'),
        *(
            "[" * 900 + "]" * 900,
            "[" * 1010 + "]" * 1010,
            "[" * 3000 + "]" * 3000,
            "[" * 3000,
            '{"a":' * 900 + "1" + "}" * 900,
        ),
    ]
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
).map(json.dumps)
_names = st.sampled_from([field.name for field in attrs.fields(BatchRecord)])
_spaces = st.sampled_from(["", "", "", " ", "\t", "\r", "\x0b", "\x00", "\ufeff"])


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Any line of a log, good or bad: a record, with some of its fields changed, and then damaged.

    Values may be of a wrong type or no JSON at all; fields may lack, come twice, be unknown or be
    written with an escape.
    """
    members = [
        (key, json.dumps(value)) for key, value in json.loads(encode(draw(records()))).items()
    ]
    for _ in range(draw(st.integers(0, 4))):
        name = draw(_names | _names | st.text(string.ascii_letters, max_size=5))
        value = draw(_tokens | _values)
        change = draw(st.sampled_from(["replace", "add", "add first", "remove"]))
        if change in ("replace", "remove"):
            members = [member for member in members if member[0] != name]
        if change != "remove":
            members.insert(0 if change == "add first" else len(members), (name, value))
    space = draw(_spaces)
    parts = []
    for name, value in members:
        key = name
        if name and draw(st.integers(0, 40)) == 0:
            key = f"\\u{ord(name[0]):04x}{name[1:]}"
        parts.append(f'"{key}":{space}{value}')
    line = f"{draw(_spaces)}{{{','.join(parts)}}}{draw(_spaces)}".encode("utf-8", "surrogatepass")
    return draw(damaged(line)) if draw(st.integers(0, 3)) == 0 else line


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """Any run manifest, good or bad: some of its fields are changed."""
    run = Run("x", dp_rank=None, facts={}, num_dropped=lambda: 0)
    members = attrs.asdict(run.manifest(log="run.jsonl", started=1.0, updated=2.0))
    texts = {name: json.dumps(value) for name, value in members.items()}
    for _ in range(draw(st.integers(0, 3))):
        texts[draw(st.sampled_from(list(texts)))] = draw(_tokens | _values)
    text = ",".join(f'"{name}":{value}' for name, value in texts.items())
    return f"{{{text}}}".encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, line: bytes) -> bytes:
    """Return a line with a few of its bytes replaced, removed or added; never a line feed."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(line)))
        width = draw(st.integers(0, 2))
        inserted = draw(st.binary(max_size=2) | st.sampled_from([b'"', b"{", b"}", b",", b"\xff"]))
        line = line[:place] + inserted.replace(b"\n", b" ") + line[place + width :]
    return line
