"""Places for records: a file, memory, the console, or several of them.

A store behind a URL is in `sched_profiler.sinks.remote`, which loads more.
"""

from __future__ import annotations

from sched_profiler.sinks.base import RunSink, Sink, SinkContext
from sched_profiler.sinks.console import ConsoleSink
from sched_profiler.sinks.jsonl import JsonlSink
from sched_profiler.sinks.memory import MemorySink
from sched_profiler.sinks.rotation import Rotation
from sched_profiler.sinks.tee import TeeSink

__all__ = [
    "ConsoleSink",
    "JsonlSink",
    "MemorySink",
    "Rotation",
    "RunSink",
    "Sink",
    "SinkContext",
    "TeeSink",
]
