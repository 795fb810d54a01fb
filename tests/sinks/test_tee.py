"""Every sink behind a tee gets every record, whatever the others do."""

from __future__ import annotations

import pytest

from sched_profiler import (
    BatchRecord,
    MemorySink,
    RunSink,
    SchedProfilerError,
    Sink,
    SinkUnavailableError,
    TeeSink,
)


class Broken:
    """A sink of which nothing works."""

    def write(self, record: BatchRecord) -> None:
        raise OSError("write")

    def flush(self) -> None:
        raise OSError("flush")

    def close(self) -> None:
        raise OSError("close")

    def __repr__(self) -> str:
        return "Broken()"


def test_a_broken_sink_does_not_stop_the_others(
    record: BatchRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log, once with its traceback, and then switched off."""
    before, after = MemorySink(), MemorySink()
    tee = TeeSink(before, Broken(), after)
    for _ in range(4):
        tee.write(record)
    tee.flush()
    tee.close()
    assert before.records == after.records == [record] * 4
    assert caplog.text.count("Traceback") == 1
    assert "sink Broken() failed 3 times in a row and is switched off" in caplog.text


def test_what_one_sink_loses_is_counted_and_told(
    record: BatchRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """The others have every record, so the count stands in the log, not in the records."""
    whole = MemorySink()
    tee = TeeSink(Broken(), whole)
    for _ in range(7):
        tee.write(record)
    tee.close()
    tee.close()
    assert len(whole.records) == 7
    assert caplog.text.count("7 records did not reach sink Broken()") == 1


class Full(MemorySink):
    """A sink that takes records and cannot bring them home."""

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        self.flush()

    def __repr__(self) -> str:
        return "Full()"


def test_what_a_sink_took_and_never_brought_home_is_counted(
    record: BatchRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """As soon as it is clear that it will not."""
    tee = TeeSink(Full(), MemorySink())
    for _ in range(5):
        tee.write(record)
        tee.flush()
    tee.close()
    assert "5 records did not reach sink Full()" in caplog.text


def test_a_record_that_no_sink_takes_is_an_error(record: BatchRecord) -> None:
    """The writer counts it as lost, and the next record that arrives somewhere says so."""
    tee = TeeSink(Broken(), Broken())
    for _ in range(3):
        with pytest.raises(OSError, match="write"):
            tee.write(record)
    with pytest.raises(SchedProfilerError, match="is switched off"):
        tee.write(record)


class Waiting(MemorySink):
    """A sink that has no room, and keeps three records for later."""

    num_unwritten = 3

    def write(self, record: BatchRecord) -> None:
        raise SinkUnavailableError(28, "No space left on device")


def test_as_long_as_one_sink_is_to_be_asked_again_so_is_the_tee(record: BatchRecord) -> None:
    """Whoever switches the tee off would take the other sink's later records away as well."""
    tee = TeeSink(Waiting(), Broken())
    for _ in range(5):
        with pytest.raises(SinkUnavailableError):
            tee.write(record)


def test_what_is_not_home_yet_is_told_to_whoever_waits_for_it(record: BatchRecord) -> None:
    """The most that one of them has still to bring home."""
    tee = TeeSink(MemorySink(), Waiting())
    tee.write(record)
    assert tee.num_unwritten == 1
    tee.flush()
    assert tee.num_unwritten == 3
    assert TeeSink().num_unwritten == 0


def test_without_sinks_there_is_nothing_to_fail(record: BatchRecord) -> None:
    """A tee of none is a way to measure without keeping anything."""
    TeeSink().write(record)


def test_strict_lets_the_failure_through(record: BatchRecord) -> None:
    """For tests."""
    with pytest.raises(OSError, match="write"):
        TeeSink(Broken(), strict=True).write(record)


def test_it_is_a_sink_and_says_what_is_behind_it() -> None:
    """So do the sinks themselves."""
    tee = TeeSink(MemorySink(), Broken())
    assert isinstance(tee, Sink)
    assert isinstance(tee, RunSink)
    assert repr(tee) == "TeeSink(MemorySink(0 records), Broken())"
