"""Prints a line now and then and a summary at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sched_profiler.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.record import BatchRecord

__all__ = ["ConsoleSink"]

_DIM, _PREFILL, _DECODE, _OFF = "\x1b[2m", "\x1b[33m", "\x1b[36m", "\x1b[0m"


class ConsoleSink:
    """Prints at most one aligned line a second, and at the end a summary of all batches.

    An engine under load forms hundreds of batches a second, and its log belongs to its operator: a
    line stands for all batches since the one before it, and says for how many.
    """

    def __init__(
        self,
        *,
        every: int = 1,
        interval_s: float = 1.0,
        print_line: Callable[[str], object] | None = None,
        colour: bool | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Print.

        Raises:
            ValueError: if `every` is less than 1.

        Args:
            every: print every n-th batch at most; the summary counts all of them.
            interval_s: time between two lines at least, in s; 0 prints every n-th batch.
            print_line: takes a line; by default it goes to standard error.
            colour: colour the phases; by default where standard error is a terminal.
            clock: the source of time.
        """
        if every < 1:
            raise ValueError(f"every is {every}; expected at least 1")
        self._every = every
        self._interval_ns = round(interval_s * 1e9)
        self._clock = clock
        self._lines: list[str] = []
        self._next_line_ns: int | None = None
        self._num_untold = 0
        self._num_summed_up = 0
        self._print_line = print_line or _to_stderr
        self._colour = sys.stderr.isatty() if colour is None else colour
        self._totals = _Totals()

    def write(self, record: BatchRecord) -> None:
        """Count the record, and keep its line for `flush` if it is the turn of one."""
        is_nth = self._totals.num_batches % self._every == 0
        self._totals.add(record)
        self._num_untold += 1
        if not is_nth:
            return
        now = self._clock.monotonic_ns()
        if self._next_line_ns is not None and now < self._next_line_ns:
            return
        self._next_line_ns = now + self._interval_ns
        line = format_line(record, colour=self._colour)
        if self._num_untold > 1:
            line += f" | 1 of {self._num_untold} batches"
        self._num_untold = 0
        self._lines.append(line)

    def flush(self) -> None:
        """Print the lines: after the sinks before it in a tee have brought their records home."""
        lines, self._lines = self._lines, []
        for line in lines:
            self._print_line(line)

    def close(self) -> None:
        """Print the summary, if there was a batch since the last one."""
        self.flush()
        if self._totals.num_batches > self._num_summed_up:
            self._num_summed_up = self._totals.num_batches
            self._print_line(self._totals.summary())

    def __repr__(self) -> str:
        """Return how much is printed."""
        return f"ConsoleSink(every={self._every})"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a console sink prints


def format_line(record: BatchRecord, *, colour: bool) -> str:
    """Return a record as one line; columns stay aligned up to 7-digit batches and 6-digit ms."""
    dim, prefill, decode, off = (_DIM, _PREFILL, _DECODE, _OFF) if colour else ("",) * 4
    model = record.model_run_duration_ms
    return (
        f"batch {record.batch_id:>7}"
        f" {dim}|{off} schedule {record.schedule_duration_ms:>9.3f} ms"
        f" {dim}|{off} model {'-' if model is None else f'{model:.3f}':>10} ms"
        f" {dim}|{off} {prefill}prefill {record.num_prefill_reqs:>4} reqs"
        f" {sum(record.prefill_chunk_sizes):>6} tokens{off}"
        f" {dim}|{off} {decode}decode {record.num_decode_reqs:>4} reqs"
        f" {sum(record.decode_chunk_sizes):>6} tokens{off}"
        f" {dim}|{off} waiting {record.num_waiting_reqs:>4}"
        f" {dim}|{off} running {record.num_running_reqs:>4}"
        f" {dim}|{off} KV cache {record.kv_cache_usage:>6.1%}"
    )


class _Totals:
    """What a summary needs, in constant memory."""

    def __init__(self) -> None:
        self.num_batches = 0
        self._schedule_ms = self._max_schedule_ms = 0.0
        self._model_ms = self._max_model_ms = self._idle_ms = 0.0
        self._num_model_runs = 0
        self._num_prefill_tokens = self._num_decode_tokens = 0
        self._max_waiting = 0
        self._max_kv_cache_usage = 0.0

    def add(self, record: BatchRecord) -> None:
        self.num_batches += 1
        self._schedule_ms += record.schedule_duration_ms
        self._max_schedule_ms = max(self._max_schedule_ms, record.schedule_duration_ms)
        if record.model_run_duration_ms is not None:
            self._num_model_runs += 1
            self._model_ms += record.model_run_duration_ms
            self._max_model_ms = max(self._max_model_ms, record.model_run_duration_ms)
        self._idle_ms += record.idle_duration_ms or 0.0
        self._num_prefill_tokens += sum(record.prefill_chunk_sizes)
        self._num_decode_tokens += sum(record.decode_chunk_sizes)
        self._max_waiting = max(self._max_waiting, record.num_waiting_reqs)
        self._max_kv_cache_usage = max(self._max_kv_cache_usage, record.kv_cache_usage)

    def summary(self) -> str:
        parts = [
            f"{self.num_batches} batches",
            (
                f"schedule mean {self._schedule_ms / self.num_batches:.3f} ms"
                f" max {self._max_schedule_ms:.3f} ms"
            ),
        ]
        if self._num_model_runs:
            parts.append(
                f"model mean {self._model_ms / self._num_model_runs:.3f} ms"
                f" max {self._max_model_ms:.3f} ms"
            )
        tokens = f"{self._num_prefill_tokens} prefill + {self._num_decode_tokens} decode tokens"
        wall_s = (self._model_ms + self._idle_ms) / 1000
        if wall_s > 0:
            total = self._num_prefill_tokens + self._num_decode_tokens
            tokens += f" in {wall_s:.1f} s ({total / wall_s:.0f} tokens/s)"
        parts += [
            tokens,
            f"peak waiting {self._max_waiting}",
            f"peak KV cache {self._max_kv_cache_usage:.1%}",
        ]
        return "scheduler profile: " + ", ".join(parts)
