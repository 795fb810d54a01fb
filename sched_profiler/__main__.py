"""Runs the command line: `python -m sched_profiler`."""

from __future__ import annotations

from sched_profiler.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
