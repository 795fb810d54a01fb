"""What an operator sees while the engine runs."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import attrs
import pytest

from sched_profiler import BatchRecord, ConsoleSink, Sink
from sched_profiler.sinks.console import format_line
from sched_profiler.testing import FakeClock


def lines_of(records: list[BatchRecord], *, every: int = 1) -> list[str]:
    """Return what is printed for `records`, were there no limit."""
    lines: list[str] = []
    sink = ConsoleSink(every=every, interval_s=0, print_line=lines.append, colour=False)
    assert isinstance(sink, Sink)
    for record in records:
        sink.write(record)
    sink.flush()
    sink.close()
    return lines


def test_a_batch_is_one_readable_line(record: BatchRecord) -> None:
    """All that matters, with units, and no escape codes where there is no terminal."""
    line, _ = lines_of([record])
    assert line == (
        "batch       5 | schedule     0.500 ms | model     10.000 ms | prefill    1 reqs     64"
        " tokens | decode    2 reqs      2 tokens | waiting    4 | running    3 | KV cache  25.0%"
    )


def test_columns_stay_aligned(record: BatchRecord) -> None:
    """From the smallest values to large ones, and where the model time is unknown."""
    large = attrs.evolve(
        record,
        batch_id=1_234_567,
        schedule_duration_ms=1234.5,
        model_run_duration_ms=98765.4,
        num_decode_reqs=1024,
        decode_chunk_sizes=[4] * 1024,
        num_waiting_reqs=5000,
        kv_cache_usage=1.0,
    )
    unknown = attrs.evolve(record, model_run_duration_ms=None)
    first, second, third, _ = lines_of([record, large, unknown])
    bars = [i for i, character in enumerate(first) if character == "|"]
    assert len(bars) == 7
    for line in (second, third):
        assert [i for i, character in enumerate(line) if character == "|"] == bars
    assert "model          - ms" in third


def test_every_nth_batch_is_printed_and_all_are_counted(record: BatchRecord) -> None:
    """The first, then every n-th; the summary knows the others."""
    records = [attrs.evolve(record, batch_id=n, idle_duration_ms=0.0) for n in range(10)]
    lines = lines_of(records, every=4)
    assert [line.split()[1] for line in lines[:-1]] == ["0", "4", "8"]
    assert [line.partition(" | 1 of ")[2] for line in lines[:-1]] == ["", "4 batches", "4 batches"]
    assert lines[-1] == (
        "scheduler profile: 10 batches, schedule mean 0.500 ms max 0.500 ms, model mean 10.000 ms"
        " max 10.000 ms, 640 prefill + 20 decode tokens in 0.1 s (6600 tokens/s), peak waiting 4,"
        " peak KV cache 25.0%"
    )


def test_under_load_there_is_one_line_a_second_that_tells_for_how_many(
    record: BatchRecord,
) -> None:
    """1,000 batches of 10 ms are 10 s: ten lines, and together they stand for all but the last."""
    lines: list[str] = []
    clock = FakeClock()
    sink = ConsoleSink(print_line=lines.append, colour=False, clock=clock)
    for number in range(1000):
        sink.write(attrs.evolve(record, batch_id=number))
        sink.flush()
        clock.advance(10)
    assert [line.split()[1] for line in lines] == [str(number) for number in range(0, 1000, 100)]
    assert not lines[0].endswith("batches")
    assert all(line.endswith(" | 1 of 100 batches") for line in lines[1:])
    sink.close()
    assert lines[10].startswith("scheduler profile: 1000 batches")


def test_an_engine_with_little_to_do_has_a_line_for_each_batch(record: BatchRecord) -> None:
    """Nothing is held back where there is no crowd."""
    lines: list[str] = []
    clock = FakeClock()
    sink = ConsoleSink(print_line=lines.append, colour=False, clock=clock)
    for _ in range(5):
        sink.write(record)
        clock.advance(1000)
    sink.flush()
    assert len(lines) == 5
    assert not any("batches" in line for line in lines)


def test_a_step_of_the_wall_clock_does_not_silence_it(record: BatchRecord) -> None:
    """The limit goes by the clock that never goes back."""
    lines: list[str] = []
    clock = FakeClock()
    sink = ConsoleSink(print_line=lines.append, clock=clock)
    sink.write(record)
    clock.step_wall_clock(-3_600_000)
    clock.advance(1001)
    sink.write(record)
    sink.flush()
    assert len(lines) == 2


def test_a_summary_without_model_times_has_no_invented_ones(record: BatchRecord) -> None:
    """An engine that measures scheduling only."""
    summary = lines_of([attrs.evolve(record, model_run_duration_ms=None)])[-1]
    assert "model" not in summary
    assert "tokens/s" not in summary


def test_lines_wait_for_the_flush(record: BatchRecord) -> None:
    """The sinks before it in a tee bring their records home first: printing may block."""
    lines: list[str] = []
    sink = ConsoleSink(print_line=lines.append)
    sink.write(record)
    assert lines == []
    sink.flush()
    assert len(lines) == 1


def test_a_second_close_sums_up_only_what_is_new(record: BatchRecord) -> None:
    """A sink may be closed in a hurry and then go on."""
    lines: list[str] = []
    sink = ConsoleSink(print_line=lines.append, every=10)
    sink.write(record)
    sink.close()
    sink.close()
    assert len(lines) == 2
    sink.write(record)
    sink.close()
    assert [line.split(",")[0] for line in lines[1:]] == [
        "scheduler profile: 1 batches",
        "scheduler profile: 2 batches",
    ]


def test_every_zeroth_batch_is_an_error() -> None:
    """It names the value and what was expected."""
    with pytest.raises(ValueError, match="every is 0; expected at least 1"):
        ConsoleSink(every=0)


def test_without_a_batch_nothing_is_printed() -> None:
    """An engine that never served has no profile."""
    assert lines_of([]) == []


def test_colours_are_in_the_line_only_if_asked_for(record: BatchRecord) -> None:
    """Every colour is switched off again."""
    coloured = format_line(record, colour=True)
    assert coloured.count("\x1b[0m") == coloured.count("\x1b[") / 2
    assert "\x1b" not in format_line(record, colour=False)


PRINT = """
from sched_profiler import BatchProfiler, ConsoleSink
with BatchProfiler(ConsoleSink(), background=False, strict=True) as profiler:
    batch = profiler.begin()
    batch.scheduled(prefill_chunk_sizes=[9], decode_chunk_sizes=[], num_waiting_reqs=0,
                    num_running_reqs=1, kv_cache_usage=0.0)
    batch.finished()
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_colour_is_used_on_a_terminal_only(terminal: bool) -> None:  # noqa: FBT001 - a parameter
    """Decided by what standard error is: a pseudo-terminal or a pipe."""
    main, side = pty.openpty() if terminal else os.pipe()
    subprocess.run([sys.executable, "-c", PRINT], stderr=side, check=True)
    printed = os.read(main, 10_000).decode()
    os.close(main)
    os.close(side)
    assert "prefill    1 reqs" in printed
    assert ("\x1b[" in printed) == terminal
