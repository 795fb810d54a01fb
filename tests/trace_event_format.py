"""What the Trace Event Format demands of a file, as Perfetto reads it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

__all__ = ["Event", "check_events"]

Event = dict[str, Any]

_KEYS = {
    "X": {"ph", "pid", "tid", "ts", "dur", "name", "args"},
    "C": {"ph", "pid", "ts", "name", "args"},
    "i": {"ph", "s", "pid", "tid", "ts", "name", "args"},
}
"""Of each phase that we write; none is left out, and none is there that the phase does not know."""
_METADATA = {
    "process_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
    "thread_sort_index": ("sort_index", int),
}
"""The only argument of each kind of metadata, and its type."""


def check_events(events: list[Event]) -> None:
    """Hold events against the format.

    Each has the keys of its phase and whole, non-negative numbers for times; metadata comes before
    the track that it names, once, with what its kind demands, and no track has the number of its
    process, which would make it the main thread to Perfetto; on a track time goes forward, and
    slices are one after the other or one within the other; counters are numbers, with the same
    series all along.
    """
    named: set[tuple[str, int, int | None]] = set()
    last: dict[tuple[Any, ...], int] = defaultdict(int)
    open_until: dict[tuple[int, int], list[int]] = defaultdict(list)
    series: dict[tuple[int, str], set[str]] = {}
    for event in events:
        phase, pid, tid = event["ph"], event["pid"], event.get("tid")
        assert _is_count(pid), event
        assert pid > 0, event
        assert tid != pid, event
        assert isinstance(event["args"], dict), event
        if phase == "M":
            _check_metadata(event)
            assert (event["name"], pid, tid) not in named, event
            named.add((event["name"], pid, tid))
            continue
        assert phase in _KEYS, event
        assert set(event) == _KEYS[phase], event
        assert isinstance(event["name"], str), event
        assert event["name"], event
        assert _is_count(event["ts"]), event
        assert ("process_name", pid, None) in named, event
        track = (pid, phase, event["name"] if phase == "C" else tid)
        assert event["ts"] >= last[track], event
        last[track] = event["ts"]
        if phase == "C":
            assert event["args"], event
            assert all(type(value) in (int, float) for value in event["args"].values()), event
            # A series that comes and goes would keep its last value in the picture.
            assert series.setdefault((pid, event["name"]), set(event["args"])) == set(event["args"])
            continue
        assert ("thread_name", pid, tid) in named, event
        if phase == "i":
            assert event["s"] == "t", event
            continue
        assert _is_count(event["dur"]), event
        within = open_until[pid, event["tid"]]
        while within and within[-1] <= event["ts"]:
            within.pop()
        end = event["ts"] + event["dur"]
        assert all(end <= outer for outer in within), event
        within.append(end)


def _check_metadata(event: Event) -> None:
    assert event["name"] in _METADATA, event
    name, kind = _METADATA[event["name"]]
    assert set(event["args"]) == {name}, event
    assert type(event["args"][name]) is kind, event
    is_of_thread = event["name"].startswith("thread_")
    keys = {"ph", "pid", "name", "args"} | ({"tid"} if is_of_thread else set())
    assert set(event) == keys, event
    assert not is_of_thread or _is_count(event["tid"]), event


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
