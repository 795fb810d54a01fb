"""Every sink behind a tee gets every record, whatever the others do."""

from __future__ import annotations

import pytest

from sched_profiler import BatchRecord, MemorySink, Sink, TeeSink


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


def test_strict_lets_the_failure_through(record: BatchRecord) -> None:
    """For tests."""
    with pytest.raises(OSError, match="write"):
        TeeSink(Broken(), strict=True).write(record)


def test_it_is_a_sink_and_says_what_is_behind_it() -> None:
    """So do the sinks themselves."""
    tee = TeeSink(MemorySink(), Broken())
    assert isinstance(tee, Sink)
    assert repr(tee) == "TeeSink(MemorySink(0 records), Broken())"
