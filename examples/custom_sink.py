"""A sink of your own: keeps slow batches in an SQLite database, and nothing of the others.

    python examples/custom_sink.py

A sink has three methods, and one background thread calls them: no lock is needed, and the engine
never waits. Here a small engine is profiled into it. For vLLM, register one under the entry-point
group `sched_profiler.sinks`, and name it in `SCHED_PROFILER_SINKS`.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from custom_engine import Engine, Request

from sched_profiler import BatchProfiler, BatchRecord

__all__ = ["SlowBatchesSink"]


class SlowBatchesSink:
    """Keeps the batches whose step took longer than a limit."""

    def __init__(self, path: Path, limit_ms: float) -> None:
        """Keep them in a database at `path`, which is made when the first one comes."""
        self._path = path
        self._limit_ms = limit_ms
        self._database: sqlite3.Connection | None = None

    def write(self, record: BatchRecord) -> None:
        """Keep a batch if it was slow; unknown is not slow."""
        if (record.total_step_duration_ms or 0.0) <= self._limit_ms:
            return
        if self._database is None:
            # Called by the profiler's own thread; closed by that of the engine.
            self._database = sqlite3.connect(self._path, check_same_thread=False)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS slow (run TEXT, batch INTEGER, ms REAL, tokens INTEGER)"
            )
        self._database.execute(
            "INSERT INTO slow VALUES (?, ?, ?, ?)",
            (
                record.run_id,
                record.batch_id,
                record.total_step_duration_ms,
                record.total_scheduled_tokens,
            ),
        )

    def flush(self) -> None:
        """Make what was written survive the process."""
        if self._database is not None:
            self._database.commit()

    def close(self) -> None:
        """End; may be called twice."""
        self.flush()
        if self._database is not None:
            self._database.close()
            self._database = None


def main() -> None:
    """Profile an engine whose model takes 10 µs for a token, and show the three slowest batches."""
    path = Path("slow_batches.sqlite")
    path.unlink(missing_ok=True)
    with BatchProfiler(SlowBatchesSink(path, limit_ms=1.0), token_budget=256) as profiler:
        engine = Engine(profiler, run_model=lambda tokens: time.sleep(tokens * 1e-5))
        engine.run(Request(prompt, 10) for prompt in (20, 1500, 100, 700))
    database = sqlite3.connect(path)
    rows = database.execute("SELECT batch, ms, tokens FROM slow ORDER BY ms DESC LIMIT 3")
    for batch, ms, tokens in rows:
        print(f"batch {batch}: {ms:.1f} ms for {tokens} tokens")
    database.close()


if __name__ == "__main__":
    main()
