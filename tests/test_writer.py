"""The engine's thread hands over and never waits; nothing is lost unseen."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sched_profiler import BatchRecord, JsonlSink, MemorySink
from sched_profiler.writer import BackgroundWriter, DirectWriter


class GatedSink(MemorySink):
    """A sink that blocks until its gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def write(self, record: BatchRecord) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        super().write(record)


class BrokenSink(MemorySink):
    """A sink that fails for the first `num_failures` calls of `write`."""

    def __init__(self, num_failures: int) -> None:
        super().__init__()
        self.num_failures = num_failures

    def write(self, record: BatchRecord) -> None:
        if self.num_failures:
            self.num_failures -= 1
            raise OSError(28, "No space left on device")
        super().write(record)


class FailingOnceSink(MemorySink):
    """A sink of which one call fails, once."""

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails = fails

    def write(self, record: BatchRecord) -> None:
        self._fail_in("write")
        super().write(record)

    def flush(self) -> None:
        self._fail_in("flush")

    def close(self) -> None:
        self._fail_in("close")

    def _fail_in(self, call: str) -> None:
        if call == self.fails:
            self.fails = "none"
            raise ValueError("no record")


def keep(measurement: Any, num_dropped: int) -> Any:
    """Stand in for the making of a record."""
    return measurement, num_dropped


def test_what_was_put_is_written_in_order_on_another_thread() -> None:
    """Also while the engine goes on putting."""
    threads = set()

    def to_record(measurement: Any, num_dropped: int) -> Any:
        threads.add(threading.current_thread())
        return measurement

    sink = MemorySink()
    writer = BackgroundWriter(sink, to_record)
    for number in range(5000):
        writer.put(number)
    assert writer.close()
    assert sink.records == list(range(5000))
    assert threading.current_thread() not in threads


def test_flush_waits_for_what_was_put_before_it() -> None:
    """After it, the records are in the sink."""
    sink = MemorySink()
    writer = BackgroundWriter(sink, keep)
    assert writer.flush(1)
    writer.put("a")
    assert writer.flush(5)
    assert sink.records == [("a", 0)]
    writer.close()
    assert writer.flush(1)


def test_records_come_soon_without_a_flush() -> None:
    """`tail -f` shows a batch within a fraction of a second."""
    sink = MemorySink()
    writer = BackgroundWriter(sink, keep)
    writer.put(1)
    time.sleep(1.0)  # idle for long: polls are rare by now
    writer.put(2)
    deadline = time.monotonic() + 2
    while len(sink.records) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(sink.records) == 2
    writer.close()


def test_a_full_queue_drops_the_newest_and_counts_it(caplog: pytest.LogCaptureFixture) -> None:
    """The count stands in the next record; `put` returned at once all the time."""
    sink = GatedSink()
    writer = BackgroundWriter(sink, keep, capacity=10)
    writer.put("first")
    assert sink.entered.wait(5)
    for number in range(25):
        writer.put(number)
    assert writer.num_dropped == 15
    assert caplog.text.count("the sink does not keep up") == 1
    sink.gate.set()
    assert writer.flush(5)
    writer.put("last")
    assert not writer.close(), "something was lost"
    assert [m for m, _ in sink.records] == ["first", *range(10), "last"]
    assert sink.records[-1] == ("last", 15)


def test_a_sink_that_blocks_for_ever_does_not_keep_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Close gives up after its time and says how much is not written."""
    sink = GatedSink()
    writer = BackgroundWriter(sink, keep)
    for number in range(3):
        writer.put(number)
    assert sink.entered.wait(5)
    assert not writer.close(timeout=0.05)
    assert "batches are not written" in caplog.text
    sink.gate.set()


def test_no_thread_and_no_io_before_the_first_record() -> None:
    """A profiler can be made before the process of the engine exists."""
    sink = MemorySink()
    before = threading.active_count()
    writer = BackgroundWriter(sink, keep)
    assert threading.active_count() == before
    assert writer.close()
    assert threading.active_count() == before


def test_closing_twice_is_harmless() -> None:
    """A context manager and an exit hook may both do it."""
    sink = MemorySink()
    for writer in (BackgroundWriter(sink, keep), DirectWriter(sink, keep)):
        writer.put(1)
        assert writer.close()
        assert writer.close()
    assert sink.records == [(1, 0), (1, 0)]


def test_a_failing_sink_never_stops_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    """Its first failure is logged with a traceback, and it is asked again."""
    sink = BrokenSink(num_failures=2)
    writer = BackgroundWriter(sink, keep)
    for number in range(4):
        writer.put(number)
    assert not writer.close(), "something was lost"
    assert [m for m, _ in sink.records] == [2, 3]
    assert sink.records[-1] == (3, 2), "the record says how many are missing"
    assert "2 batches have no record" in caplog.text
    assert caplog.text.count("Traceback") == 1
    assert "No space left on device" in caplog.text
    assert "switched off" not in caplog.text


def test_a_sink_that_fails_three_times_in_a_row_is_switched_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And the log says so."""
    sink = BrokenSink(num_failures=3)
    writer = DirectWriter(sink, keep)
    for number in range(5):
        writer.put(number)
    assert sink.records == []
    assert "failed 3 times in a row and is switched off" in caplog.text


def test_what_a_sink_took_and_never_brought_home_is_counted(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, record: BatchRecord
) -> None:
    """Here the path of the log is a folder: nothing reaches it, and close says so."""
    writer = DirectWriter(JsonlSink(tmp_path), lambda _measurement, _dropped: record)
    for _ in range(10):
        writer.put(None)
    assert not writer.flush()
    assert not writer.flush()
    assert not writer.flush()
    writer.put(None)
    assert not writer.close()
    assert writer.num_dropped == 11
    assert "Is a directory" in caplog.text


def test_a_batch_that_comes_after_the_close_is_counted() -> None:
    """Nobody writes it any more."""
    writer = BackgroundWriter(MemorySink(), keep)
    writer.put(1)
    assert writer.close()
    writer.put(2)
    assert writer.num_dropped == 1


def test_a_sink_closed_in_a_hurry_takes_what_comes_after_it() -> None:
    """It had its last word in time, should the process end now; it may also go on."""
    closed: list[int] = []

    class Closing(MemorySink):
        def close(self) -> None:
            closed.append(len(self.records))

    sink = Closing()
    writer = BackgroundWriter(sink, keep)
    writer.put(1)
    writer.hurry(close_sink=True)
    deadline = time.monotonic() + 5
    while not closed and time.monotonic() < deadline:
        time.sleep(0.001)
    writer.put(2)
    assert writer.close()
    assert closed == [1, 2]


def test_a_record_that_cannot_be_made_is_counted() -> None:
    """It is lost, and every later record tells."""
    numbers = itertools.count()

    def to_record(measurement: Any, num_dropped: int) -> Any:
        if next(numbers) == 1:
            raise ValueError("malformed")
        return measurement, num_dropped

    sink = MemorySink()
    writer = BackgroundWriter(sink, to_record)
    for name in "abc":
        writer.put(name)
    assert not writer.close(), "something was lost"
    assert sink.records == [("a", 0), ("c", 1)]
    assert writer.num_dropped == 1


@pytest.mark.parametrize("ends", ["flush", "close"])
@pytest.mark.parametrize("fails", ["the record", "write", "flush", "close"])
def test_strict_raises_what_failed_on_the_thread_where_somebody_waits(
    fails: str, ends: str
) -> None:
    """Once, and what comes after the failure is written all the same."""

    def to_record(measurement: Any, num_dropped: int) -> Any:
        if fails == "the record" and measurement == 1:
            raise ValueError("no record")
        return measurement

    sink = FailingOnceSink(fails)
    writer = BackgroundWriter(sink, to_record, strict=True)
    for number in (1, 2):
        writer.put(number)
    if fails == "close" and ends == "flush":
        assert writer.flush(30)
        ends = "close"
    with pytest.raises(ValueError, match="no record"):
        getattr(writer, ends)(30)
    writer.close(30)
    assert sink.records[-1] == 2


def test_strict_lets_a_failure_through() -> None:
    """In a test a failure is what one wants to see."""
    with pytest.raises(OSError, match="No space"):
        DirectWriter(BrokenSink(num_failures=1), keep, strict=True).put(1)
