"""What the environment asks for."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import attrs

from sched_profiler.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ENABLE", "Settings"]

ENABLE = "VLLM_ENABLE_SCHEDULER_PROFILING"
LOG = "VLLM_SCHEDULER_PROFILING_LOG"
CONSOLE = "VLLM_SCHEDULER_PROFILING_CONSOLE"
CONSOLE_EVERY = "SCHED_PROFILER_CONSOLE_EVERY"
SINKS = "SCHED_PROFILER_SINKS"
PROMETHEUS_PORT = "SCHED_PROFILER_PROMETHEUS_PORT"
REQUEST_IDS = "SCHED_PROFILER_REQUEST_IDS"
STRICT = "SCHED_PROFILER_STRICT"

# vLLM's own spellings, in any case; an empty variable is an unset one, as for vLLM.
_TRUE, _FALSE = ("1", "true"), ("", "0", "false")


@attrs.frozen(kw_only=True)
class Settings:
    """Every setting, with the environment variable that it comes from.

    Attributes:
        enabled: `VLLM_ENABLE_SCHEDULER_PROFILING`: profile at all.
        log: `VLLM_SCHEDULER_PROFILING_LOG`: path of the log; `~` is the home folder.
        console: `VLLM_SCHEDULER_PROFILING_CONSOLE`: also print batches to the engine's own log.
        console_every: `SCHED_PROFILER_CONSOLE_EVERY`: print every n-th batch only.
        sinks: `SCHED_PROFILER_SINKS`: names of the sinks that get the records; by default those
            that the three variables above ask for.
        prometheus_port: `SCHED_PROFILER_PROMETHEUS_PORT`: port on this machine's loopback address
            at which Prometheus finds the metrics of rank 0; rank n has the n-th port after it.
        request_ids: `SCHED_PROFILER_REQUEST_IDS`: record which requests were in each batch.
        strict: `SCHED_PROFILER_STRICT`: let failures of the profiler through instead of logging
            them; for tests and for work on an adapter, never for serving.
    """

    enabled: bool = False
    log: str = "scheduler_profiling.jsonl"
    console: bool = False
    console_every: int = 1
    sinks: tuple[str, ...] = ("jsonl",)
    prometheus_port: int | None = None
    request_ids: bool = False
    strict: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings.

        Raises:
            SettingError: naming the variable, its value and what it may be.
        """
        console = _bool(environ, CONSOLE)
        return cls(
            enabled=_bool(environ, ENABLE),
            log=_path(environ, LOG, default="scheduler_profiling.jsonl"),
            console=console,
            console_every=_positive(environ, CONSOLE_EVERY) or 1,
            sinks=_names(environ, SINKS) or (("jsonl", "console") if console else ("jsonl",)),
            prometheus_port=_positive(environ, PROMETHEUS_PORT, maximum=65_535),
            request_ids=_bool(environ, REQUEST_IDS),
            strict=_bool(environ, STRICT),
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
        raise SettingError(f"{name}={environ[name]!r} is no whole number above 0, up to {maximum}")
    return int(value)


def _names(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Return the names in a list with commas, each once."""
    names = (part.strip() for part in environ.get(name, "").split(","))
    return tuple(dict.fromkeys(part for part in names if part))


def _path(environ: Mapping[str, str], name: str, *, default: str) -> str:
    value = environ.get(name, "").strip() or default
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", value, re.IGNORECASE)
    if scheme:
        # Not the whole value: a URL may hold a password.
        raise SettingError(
            f"{name} is a {scheme[1]}:// URL, and this version writes to files only; "
            "name a path on a local disk"
        )
    return os.path.expanduser(value)  # noqa: PTH111 - stays a string: it is one setting of many
