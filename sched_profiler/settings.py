"""What the environment asks for."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import attrs

from sched_profiler.errors import SettingError
from sched_profiler.log_names import check_placeholders
from sched_profiler.redact import is_url, without_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ENABLE", "VARIABLES", "Settings"]

ENABLE = "VLLM_ENABLE_SCHEDULER_PROFILING"
LOG = "VLLM_SCHEDULER_PROFILING_LOG"
CONSOLE = "VLLM_SCHEDULER_PROFILING_CONSOLE"
CONSOLE_EVERY = "SCHED_PROFILER_CONSOLE_EVERY"
SINKS = "SCHED_PROFILER_SINKS"
PROMETHEUS_PORT = "SCHED_PROFILER_PROMETHEUS_PORT"
REQUEST_IDS = "SCHED_PROFILER_REQUEST_IDS"
REQUEST_TRACE = "SCHED_PROFILER_REQUEST_TRACE"
STRICT = "SCHED_PROFILER_STRICT"
PART_MIB = "SCHED_PROFILER_PART_MIB"
PART_SECONDS = "SCHED_PROFILER_PART_SECONDS"
KEEP_PARTS = "SCHED_PROFILER_KEEP_PARTS"
KEEP_MIB = "SCHED_PROFILER_KEEP_MIB"
COMPRESS = "SCHED_PROFILER_COMPRESS"
SPOOL = "SCHED_PROFILER_SPOOL"

VARIABLES = (
    *(ENABLE, LOG, CONSOLE, CONSOLE_EVERY, SINKS, PROMETHEUS_PORT, REQUEST_IDS, REQUEST_TRACE),
    *(STRICT, PART_MIB, PART_SECONDS, KEEP_PARTS, KEEP_MIB, COMPRESS, SPOOL),
)
"""All of them, in the order of the attributes of `Settings`."""

# vLLM's own spellings, in any case; an empty variable is an unset one, as for vLLM.
_TRUE, _FALSE = ("1", "true"), ("", "0", "false")


@attrs.frozen(kw_only=True)
class Settings:
    """Every setting, with the environment variable that it comes from.

    Attributes:
        enabled: `VLLM_ENABLE_SCHEDULER_PROFILING`: profile at all.
        log: `VLLM_SCHEDULER_PROFILING_LOG`: path of the log, where `~` is the home folder, or a
            URL. It may hold placeholders, see `JsonlSink`.
        console: `VLLM_SCHEDULER_PROFILING_CONSOLE`: also print batches to the engine's own log.
        console_every: `SCHED_PROFILER_CONSOLE_EVERY`: print every n-th batch only.
        sinks: `SCHED_PROFILER_SINKS`: names of the sinks that get the records; by default
            the log, and with `console` the console.
        prometheus_port: `SCHED_PROFILER_PROMETHEUS_PORT`: port on this machine's loopback address
            at which Prometheus finds the metrics of rank 0; rank n has the n-th port after it.
        request_ids: `SCHED_PROFILER_REQUEST_IDS`: record which requests were in each batch.
        request_trace: `SCHED_PROFILER_REQUEST_TRACE`: record when each request came and how long
            its prompt and its answer were, in a file beside the log.
        strict: `SCHED_PROFILER_STRICT`: let failures of the profiler through instead of logging
            them; for tests and for work on an adapter, never for serving.
        part_mib: `SCHED_PROFILER_PART_MIB`: close a part of the log before it gets larger, in MiB.
        part_seconds: `SCHED_PROFILER_PART_SECONDS`: close a part that began so long ago.
        keep_parts: `SCHED_PROFILER_KEEP_PARTS`: keep so many closed parts.
        keep_mib: `SCHED_PROFILER_KEEP_MIB`: keep so much on this disk, in MiB.
        compress: `SCHED_PROFILER_COMPRESS`: how to compress closed parts.
        spool: `SCHED_PROFILER_SPOOL`: folder for what is not uploaded yet.
    """

    enabled: bool = False
    # A URL may hold a credential.
    log: str = attrs.field(
        default="scheduler_profiling.jsonl", repr=lambda log: repr(without_credentials(log))
    )
    console: bool = False
    console_every: int = 1
    sinks: tuple[str, ...] = ("jsonl",)
    prometheus_port: int | None = None
    request_ids: bool = False
    request_trace: bool = False
    strict: bool = False
    part_mib: int | None = None
    part_seconds: int | None = None
    keep_parts: int | None = None
    keep_mib: int | None = None
    compress: str | None = None
    spool: str | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings.

        Raises:
            SettingError: naming the variable, its value and what it may be.
        """
        console = _bool(environ, CONSOLE)
        settings = cls(
            enabled=_bool(environ, ENABLE),
            log=_path(environ, LOG, default="scheduler_profiling.jsonl"),
            console=console,
            console_every=_positive(environ, CONSOLE_EVERY) or 1,
            sinks=_names(environ, SINKS) or (("jsonl", "console") if console else ("jsonl",)),
            prometheus_port=_positive(environ, PROMETHEUS_PORT, maximum=65_535),
            request_ids=_bool(environ, REQUEST_IDS),
            request_trace=_bool(environ, REQUEST_TRACE),
            strict=_bool(environ, STRICT),
            part_mib=_positive(environ, PART_MIB),
            part_seconds=_positive(environ, PART_SECONDS),
            keep_parts=_positive(environ, KEEP_PARTS),
            keep_mib=_positive(environ, KEEP_MIB),
            compress=_compress(environ),
            spool=_folder(environ, SPOOL),
        )
        settings._check_rotation()
        return settings

    def _check_rotation(self) -> None:
        if is_url(self.log) or self.part_mib or self.part_seconds:
            return
        for name, value in (
            (KEEP_PARTS, self.keep_parts),
            (KEEP_MIB, self.keep_mib),
            (COMPRESS, self.compress not in (None, "none")),
        ):
            if value:
                raise SettingError(
                    f"{name} is about closed parts of a log, and none is ever closed; "
                    f"set {PART_MIB} or {PART_SECONDS} as well"
                )


def _bool(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise SettingError(
        f"{name}={environ[name]!r} is neither true nor false; use true, 1, false or 0"
    )


def _positive(environ: Mapping[str, str], name: str, *, maximum: int = 999_999_999) -> int | None:
    value = environ.get(name, "").strip()
    if not value:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", value) or not 0 < int(value) <= maximum:
        raise SettingError(
            f"{name}={environ[name]!r} cannot be; use a whole number above 0, up to {maximum}"
        )
    return int(value)


def _names(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Return the names in a list with commas, each once."""
    names = (part.strip() for part in environ.get(name, "").split(","))
    return tuple(dict.fromkeys(part for part in names if part))


def _compress(environ: Mapping[str, str]) -> str | None:
    value = environ.get(COMPRESS, "").strip().lower()
    if value not in ("", "none", "gzip", "zstd"):
        raise SettingError(f"{COMPRESS}={environ[COMPRESS]!r} is unknown; use gzip, zstd or none")
    return value or None


def _folder(environ: Mapping[str, str], name: str) -> str | None:
    value = environ.get(name, "").strip()
    if is_url(value):
        raise SettingError(f"{name} is a URL; name a folder on a local disk")
    return os.path.expanduser(value) or None  # noqa: PTH111 - stays a string


def _path(environ: Mapping[str, str], name: str, *, default: str) -> str:
    value = environ.get(name, "").strip() or default
    try:
        check_placeholders(value)
    except SettingError as error:
        raise SettingError(f"{name}: {error}") from None
    if is_url(value):
        return value
    return os.path.expanduser(value)  # noqa: PTH111 - stays a string: it is one setting of many
