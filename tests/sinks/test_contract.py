"""Every sink of ours keeps the contract that `sched_profiler.testing` has for all sinks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from sched_profiler import (
    BatchRecord,
    ConsoleSink,
    JsonlSink,
    MemorySink,
    RemoteSink,
    Rotation,
    Sink,
    TeeSink,
    decode,
)
from sched_profiler.reader import read_records
from sched_profiler.testing import SinkContract


class TestJsonlSink(SinkContract):
    """The file sink."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.num_made = 0

    def make_sink(self) -> Sink:
        self.num_made += 1
        self.log = self.folder / "missing" / f"{self.num_made}.jsonl"
        return JsonlSink(self.log)

    def arrived(self) -> list[BatchRecord]:
        return (
            [decode(line) for line in self.log.read_bytes().splitlines()]
            if (self.log.exists())
            else []
        )


class TestJsonlSinkWithRotation(SinkContract):
    """The file sink whose files are closed now and then."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.num_made = 0

    def make_sink(self) -> Sink:
        self.num_made += 1
        self.logs = self.folder / str(self.num_made)
        rotation = Rotation(part_bytes=100_000, compress="gzip")
        return JsonlSink(self.logs / "log.jsonl", rotation=rotation)

    def arrived(self) -> list[BatchRecord]:
        return list(read_records(self.logs)) if self.logs.exists() else []


class TestRemoteSink(SinkContract):
    """The sink of a store, in the memory of this process."""

    arrives_at_flush = False

    @pytest.fixture(autouse=True)
    def _store(self, tmp_path: Path) -> Iterator[None]:
        self.spool = tmp_path
        self.num_made = 0
        yield
        fsspec.filesystem("memory").store.clear()

    def make_sink(self) -> Sink:
        self.num_made += 1
        self.url = f"memory://contract/{self.num_made}/"
        return RemoteSink(self.url, spool=self.spool / str(self.num_made))

    def arrived(self) -> list[BatchRecord]:
        there = fsspec.filesystem("memory").find(f"/contract/{self.num_made}")
        return list(read_records(self.url)) if there else []


class TestMemorySink(SinkContract):
    """The list."""

    def make_sink(self) -> Sink:
        self.sink = MemorySink()
        return self.sink

    def arrived(self) -> list[BatchRecord]:
        return self.sink.records


class TestTeeSink(SinkContract):
    """Two lists behind one sink, which nobody waits for but its close."""

    arrives_at_flush = False

    def make_sink(self) -> Sink:
        self.sinks = MemorySink(), MemorySink()
        return TeeSink(*self.sinks)

    def arrived(self) -> list[BatchRecord]:
        first, second = self.sinks
        assert first.records == second.records
        return first.records


class TestConsoleSink(SinkContract):
    """The lines, where there is no limit."""

    def make_sink(self) -> Sink:
        self.lines: list[str] = []
        return ConsoleSink(interval_s=0, print_line=self.lines.append)

    def arrived(self) -> int:
        return sum(line.startswith("batch ") for line in self.lines)


class Faulty(MemorySink):
    """A sink that breaks the contract in one way."""

    def __init__(self, fault: str, path: Path) -> None:
        super().__init__()
        self.fault = fault
        self.closed = False
        if fault == "opens at once":
            path.open("a").close()

    def write(self, record: BatchRecord) -> None:
        if self.fault == "forgets" and record.batch_id == 4000:
            return
        if self.fault == "refuses nulls" and record.model_run_duration_ms is None:
            raise TypeError(self.fault)
        if self.fault == "is for once" and self.closed:
            raise ValueError("closed")
        if self.fault == "changes records":
            record.decode_chunk_sizes.clear()
        super().write(record)

    def close(self) -> None:
        if self.fault == "closes once" and self.closed:
            raise ValueError("closed")
        self.closed = True


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("opens at once", "test_it_does_nothing_before_the_first_write"),
        ("forgets", "test_it_takes_many_records"),
        ("refuses nulls", "test_it_takes_every_null"),
        ("is for once", "test_it_goes_on_after_a_close_in_a_hurry"),
        ("closes once", "test_it_may_be_closed_twice"),
        ("changes records", "test_it_leaves_records_as_they_are"),
    ],
)
def test_the_contract_finds_a_faulty_sink(fault: str, test: str, tmp_path: Path) -> None:
    """In the test that is about it."""

    class Contract(SinkContract):
        def make_sink(self) -> Sink:
            self.sink = Faulty(fault, tmp_path / "file")
            return self.sink

        def arrived(self) -> list[BatchRecord]:
            return self.sink.records

    with pytest.raises((AssertionError, TypeError, ValueError)):
        getattr(Contract(), test)()
