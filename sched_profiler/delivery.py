"""Makes the sink that the settings ask for: a file, or a store behind a URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sched_profiler.redact import is_url
from sched_profiler.sinks.jsonl import JsonlSink
from sched_profiler.sinks.parts import Rotation

if TYPE_CHECKING:
    from sched_profiler.settings import Settings
    from sched_profiler.sinks.remote import RemoteSink

__all__ = ["log_sink"]

_MIB = 1 << 20


def log_sink(settings: Settings, dp_rank: int | None = None) -> JsonlSink | RemoteSink:
    """Return the sink for the log of a data-parallel rank.

    Each rank has a file of its own: rank 0 the one that was asked for. What the settings leave open
    is as the sink has it.

    Raises:
        SettingError: if a package for it is not installed.
    """
    if is_url(settings.log):
        # Loaded only for URLs: hardly anything of it is needed for a file.
        from sched_profiler.sinks.remote import REMOTE_ROTATION, RemoteSink  # noqa: PLC0415

        return RemoteSink(
            settings.log, spool=settings.spool, rotation=_rotation(settings, REMOTE_ROTATION)
        )
    # The folder that the engine was started in may not be the one that it is in later.
    log = Path(settings.log).absolute()
    if dp_rank and "{dp_rank}" not in settings.log:
        log = log.with_name(f"{log.stem}.dp{dp_rank}{log.suffix}")
    return JsonlSink(log, rotation=_rotation(settings, Rotation()))


def _rotation(settings: Settings, default: Rotation) -> Rotation:
    compress = default.compress if settings.compress is None else settings.compress
    return Rotation(
        part_bytes=_bytes(settings.part_mib) or default.part_bytes,
        part_seconds=settings.part_seconds or default.part_seconds,
        keep_parts=settings.keep_parts or default.keep_parts,
        keep_bytes=_bytes(settings.keep_mib) or default.keep_bytes,
        compress=None if compress == "none" else compress,
    )


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * _MIB
