"""Profiler for the scheduler of a continuous-batching LLM engine.

One record per batch: what was in it, how long scheduling and the model took, what was left
waiting. `BatchProfiler` measures, a `Sink` takes the records, `sched_profiler.analysis` reads them
back.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sched_profiler.codec import decode, encode, schema
    from sched_profiler.errors import (
        LogError,
        MissingExtraError,
        RecordError,
        SchedProfilerError,
        SchemaVersionError,
        SettingError,
        SinkUnavailableError,
        UploadError,
    )
    from sched_profiler.manifest import RunFacts, RunManifest
    from sched_profiler.profiler import Batch, BatchProfiler
    from sched_profiler.record import BatchRecord, chunk_statistics
    from sched_profiler.sinks import (
        ConsoleSink,
        JsonlSink,
        MemorySink,
        Rotation,
        RunSink,
        Sink,
        SinkContext,
        TeeSink,
    )
    from sched_profiler.sinks.remote import RemoteSink

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchProfiler",
    "BatchRecord",
    "ConsoleSink",
    "JsonlSink",
    "LogError",
    "MemorySink",
    "MissingExtraError",
    "RecordError",
    "RemoteSink",
    "Rotation",
    "RunFacts",
    "RunManifest",
    "RunSink",
    "SchedProfilerError",
    "SchemaVersionError",
    "SettingError",
    "Sink",
    "SinkContext",
    "SinkUnavailableError",
    "TeeSink",
    "UploadError",
    "chunk_statistics",
    "decode",
    "encode",
    "schema",
]

_HOMES = {
    "codec": ("decode", "encode", "schema"),
    "errors": (
        "LogError",
        "MissingExtraError",
        "RecordError",
        "SchedProfilerError",
        "SchemaVersionError",
        "SettingError",
        "SinkUnavailableError",
        "UploadError",
    ),
    "manifest": ("RunFacts", "RunManifest"),
    "profiler": ("Batch", "BatchProfiler"),
    "record": ("BatchRecord", "chunk_statistics"),
    "sinks": (
        "ConsoleSink",
        "JsonlSink",
        "MemorySink",
        "Rotation",
        "RunSink",
        "Sink",
        "SinkContext",
        "TeeSink",
    ),
    "sinks.remote": ("RemoteSink",),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used.

    vLLM imports this package in every one of its processes, also where profiling is off.
    """
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
