"""Every sink behind a tee gets every record, whatever the others do; the log comes first."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from engine_under_test import serve, until

from sched_profiler import (
    BatchProfiler,
    BatchRecord,
    JsonlSink,
    MemorySink,
    RunSink,
    Sink,
    SinkUnavailableError,
    TeeSink,
)
from sched_profiler.manifest import parse_manifest
from sched_profiler.verify import verify


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


class Log(MemorySink):
    """A list that is told of the run, as logs are."""

    def begin_run(self, run: object) -> None:
        """Keep no manifest."""


class BrokenLog(Broken, Log):
    """A log of which nothing works."""


class Hanging(MemorySink):
    """A sink that does not come back from one of its calls until it is released."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.release = threading.Event()
        setattr(self, call, self._hang)

    def _hang(self, *_: object) -> None:
        assert self.release.wait(60)

    def __repr__(self) -> str:
        return "Hanging()"


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


@pytest.mark.parametrize("call", ["write", "flush", "close"])
def test_a_sink_that_hangs_costs_its_own_records_and_no_other(
    call: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log beside it is complete and has its end; its manifest and a warning count the rest."""
    monkeypatch.setattr("sched_profiler.sinks.tee._CLOSE_S", 0.2)
    hanging, healthy = Hanging(call), MemorySink()
    profiler = BatchProfiler(TeeSink(hanging, JsonlSink(tmp_path / "log.jsonl"), healthy))
    for _ in range(2):
        serve(profiler, 50)
        assert profiler.flush(30)
    assert profiler.close(30)
    (run,) = verify(tmp_path).runs
    assert (run.num_records, run.num_missing, run.num_dropped, run.end) == (100, 0, 0, "clean")
    assert len(healthy.records) == 100
    (path,) = tmp_path.glob("*.run.json")
    missing = parse_manifest(path.read_bytes(), path.name).num_missing_elsewhere
    if call == "close":
        # Until then it had taken all.
        assert "did not reach" not in caplog.text
    else:
        assert missing["Hanging"] == 100
        assert "100 records did not reach sink Hanging()" in caplog.text
    hanging.release.set()


def test_a_queue_before_a_sink_that_hangs_is_bounded(
    record: BatchRecord, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once; what is lost is counted, and what waits gets there after all."""
    monkeypatch.setattr("sched_profiler.sinks.tee._CLOSE_S", 0.05)
    monkeypatch.setattr("sched_profiler.sinks.detached.CAPACITY", 10)
    monkeypatch.setattr("sched_profiler.sinks.tee.CAPACITY", 4)
    hanging = Hanging("flush")
    tee = TeeSink(hanging, MemorySink())
    tee.write(record)
    tee.flush()
    until(lambda: hanging.records)
    for _ in range(15):
        tee.write(record)
    tee.close()
    tee.close()
    assert caplog.text.count("sink Hanging() does not keep up: 10 records wait for it") == 1
    assert caplog.text.count("16 records did not reach sink Hanging()") == 1
    hanging.release.set()
    until(lambda: len(hanging.records) == 11)


def test_a_log_is_home_before_the_others_hear_of_it(record: BatchRecord) -> None:
    """Should the process be killed now, the log is what is whole."""
    home: list[int] = []

    class Brought(Log):
        def flush(self) -> None:
            home.append(len(self.records))

    class Asking(MemorySink):
        def write(self, record: BatchRecord) -> None:
            super().write(record)
            assert home == [1]

    asking = Asking()
    tee = TeeSink(asking, Brought(), strict=True)
    tee.write(record)
    assert asking.records == []
    tee.flush()
    until(lambda: asking.records)


def test_a_log_that_is_broken_stops_nobody_and_its_losses_are_those_of_the_tee(
    record: BatchRecord,
) -> None:
    """So every record says how many are missing in the log."""
    other = MemorySink()
    tee = TeeSink(other, BrokenLog())
    for _ in range(5):
        tee.write(record)
    tee.close()
    assert other.records == [record] * 5
    assert tee.num_lost == 5


def test_a_log_that_waits_for_room_is_asked_again(record: BatchRecord) -> None:
    """And says itself how many records it keeps."""

    class Waiting(Log):
        num_unwritten = 3
        has_room = False

        def write(self, record: BatchRecord) -> None:
            if not self.has_room:
                raise SinkUnavailableError(28, "No space left on device")
            super().write(record)

    log = Waiting()
    tee = TeeSink(log, MemorySink())
    for _ in range(5):
        tee.write(record)
    tee.flush()
    assert (tee.num_lost, tee.num_unwritten) == (5, 3)
    log.has_room = True
    tee.write(record)
    assert log.records == [record]
    tee.close()


def test_without_sinks_there_is_nothing_to_fail(record: BatchRecord) -> None:
    """A tee of none is a way to measure without keeping anything."""
    tee = TeeSink()
    tee.write(record)
    assert tee.num_unwritten == tee.num_lost == 0


def test_no_thread_is_left_after_the_close(record: BatchRecord) -> None:
    """And none is there before the first record."""
    before = set(threading.enumerate())
    tee = TeeSink(MemorySink(), MemorySink())
    tee.flush()
    assert set(threading.enumerate()) == before
    tee.write(record)
    tee.close()
    assert set(threading.enumerate()) == before


def test_strict_lets_the_failure_through(record: BatchRecord) -> None:
    """For tests."""
    with pytest.raises(OSError, match="write"):
        TeeSink(BrokenLog(), MemorySink(), strict=True).write(record)


def test_it_is_a_sink_and_says_what_is_behind_it() -> None:
    """So do the sinks themselves."""
    tee = TeeSink(MemorySink(), Broken())
    assert isinstance(tee, Sink)
    assert isinstance(tee, RunSink)
    assert repr(tee) == "TeeSink(MemorySink(0 records), Broken())"
