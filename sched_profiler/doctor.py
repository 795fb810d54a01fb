"""Says why a log is empty: everything between three variables and a file, looked at one by one.

It looks at what the engine looks at, without starting one: neither vLLM nor torch is imported.
Values are shown of our own settings only, and never a credential in them.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from sched_profiler import settings as our
from sched_profiler.engines.vllm_binding import version_warning
from sched_profiler.errors import SchedProfilerError, SettingError
from sched_profiler.sinks.registry import find_sinks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Finding", "Surroundings", "examine", "surroundings"]

_OUR_NAMES = (
    *(our.ENABLE, our.LOG, our.CONSOLE, our.CONSOLE_EVERY),
    *(our.SINKS, our.PROMETHEUS_PORT, our.REQUEST_IDS, our.STRICT),
)
_FEW_BYTES, _TOO_FEW_BYTES = 1 << 30, 100 << 20


@attrs.frozen
class Finding:
    """What was found out about one thing.

    Attributes:
        subject: what was looked at.
        status: a problem is a reason for an empty log; a warning is none, but may surprise.
        text: what was found.
        remedy: what to do about it; `None` where nothing needs to be done.
    """

    subject: str
    status: Literal["ok", "warning", "problem"]
    text: str
    remedy: str | None = None

    def __str__(self) -> str:
        """Return it as one line, without the remedy."""
        return f"{self.status:<8} {self.subject}: {self.text}"


@attrs.frozen
class Surroundings:
    """Where an engine runs, or would run.

    Attributes:
        environ: its environment variables.
        folder: the folder that it was started in.
    """

    environ: Mapping[str, str]
    folder: Path


def surroundings(pid: int | None = None) -> Surroundings:
    """Return the surroundings of a running process; by default, of this one.

    Raises:
        SchedProfilerError: if there is no such process, or it belongs to somebody else.
    """
    if pid is None:
        return Surroundings(os.environ, Path.cwd())
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
        folder = Path(f"/proc/{pid}/cwd").readlink()
    except OSError as error:
        raise SchedProfilerError(
            f"the environment of process {pid} cannot be read: {error.strerror}; "
            "run as its user, on the machine or in the container where it runs"
        ) from None
    variables = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0"))
    return Surroundings({name: value for name, _, value in variables if name}, folder)


def examine(place: Surroundings) -> Iterator[Finding]:
    """Yield what is found, in the order in which things can go wrong."""
    yield from _variables(place.environ)
    yield _plug_in(place.environ)
    yield _vllm()
    try:
        settings = our.Settings.from_environ(place.environ)
    except SettingError:
        return  # said with the variables; what they ask for is not known
    yield from _sinks(settings, place.environ)
    if "jsonl" in settings.sinks:
        yield from _log(settings.log, place.folder)
    if "console" in settings.sinks:
        yield _console(place.environ)


def _variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the settings themselves."""
    for name in _OUR_NAMES:
        if environ.get(name, "").strip():
            yield Finding(name, "ok", f"set to {_shown(environ[name])}")
    try:
        settings = our.Settings.from_environ(environ)
    except SettingError as error:
        yield Finding("settings", "problem", str(error), "correct the variable")
    else:
        if not settings.enabled:
            yield Finding(
                our.ENABLE,
                "problem",
                "profiling is not asked for",
                f"export {our.ENABLE}=true before the server is started; "
                "a service or a container does not see the variables of your shell",
            )
    for name in sorted(environ):
        if re.search("SCHED_PROFILER|SCHEDULER_PROFILING", name) and name not in _OUR_NAMES:
            yield Finding(
                name,
                "warning",
                "is no setting of this version; it has no effect",
                f"settings are {', '.join(_OUR_NAMES)}",
            )


def _shown(value: str) -> str:
    """Return a value without the credentials that a URL may hold."""
    # Up to the last @: a password may itself hold a slash or an @.
    return re.sub(r"^([\w+.:-]*://)(?:.*@)?([^?#]*).*$", r"\1\2", value.strip(), flags=re.DOTALL)


def _plug_in(environ: Mapping[str, str]) -> Finding:
    """Find out whether vLLM finds and loads us."""
    subject = "plug-in"
    names = {entry_point.name for entry_point in entry_points(group="vllm.general_plugins")}
    if "sched_profiler" not in names:
        return Finding(
            subject,
            "problem",
            f"vLLM does not find sched-profiler in {sys.prefix}",
            "install sched-profiler into the environment that vLLM runs in, with pip: "
            "a copy on PYTHONPATH has no entry point",
        )
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is not None and "sched_profiler" not in allowed.split(","):
        return Finding(
            subject,
            "problem",
            "VLLM_PLUGINS excludes sched_profiler",
            "add sched_profiler to VLLM_PLUGINS, or unset it",
        )
    return Finding(subject, "ok", f"vLLM finds sched-profiler in {sys.prefix}")


def _vllm() -> Finding:
    """Find out which vLLM is there, without importing it."""
    found = _vllm_version()
    if found is None:
        return Finding(
            "vLLM",
            "problem",
            f"is not installed in {sys.prefix}",
            "run this command with the Python that runs vLLM: PYTHON -m sched_profiler doctor",
        )
    if version_warning(found) is None:
        return Finding("vLLM", "ok", f"version {found} is a tested one")
    return Finding(
        "vLLM",
        "warning",
        f"version {found} was not tested with this version of sched-profiler",
        "look in vLLM's log for 'scheduler profiling is off'; a newer sched-profiler may help",
    )


def _vllm_version() -> str | None:
    """Return the version of vLLM; builds for other hardware have other names than `vllm`."""
    if find_spec("vllm") is None:
        return None
    try:
        return version("vllm")
    except PackageNotFoundError:
        return version(packages_distributions()["vllm"][0])


def _sinks(settings: our.Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Find out whether the sinks asked for can be made."""
    try:
        find_sinks(settings.sinks)
    except SettingError as error:
        yield Finding("sinks", "problem", str(error), f"correct {our.SINKS}")
        return
    yield Finding("sinks", "ok", f"records go to {', '.join(settings.sinks)}")
    for name, module in (("prometheus", "prometheus_client"), ("otel", "opentelemetry.sdk")):
        if name in settings.sinks and not _is_installed(module):
            yield Finding(
                f"sink {name}",
                "warning",
                f"{module} is not installed; the other sinks work without it",
                f'pip install "sched-profiler[{name}]"',
            )
    if "prometheus" in settings.sinks:
        yield _prometheus(settings, environ)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False  # not even the package it is in


def _prometheus(settings: our.Settings, environ: Mapping[str, str]) -> Finding:
    """Find out whether somebody can read the metrics."""
    subject = "sink prometheus"
    folder = environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is not None and not Path(folder).is_dir():
        return Finding(
            subject,
            "problem",
            "PROMETHEUS_MULTIPROC_DIR is no folder, so the server cannot start",
            "make the folder, empty, before each start of the server",
        )
    if folder is None and settings.prometheus_port is None:
        return Finding(
            subject,
            "warning",
            "nobody can read the metrics, unless vLLM runs several API servers",
            "set PROMETHEUS_MULTIPROC_DIR to an empty folder, so that vLLM's /metrics has them, "
            f"or {our.PROMETHEUS_PORT} to a port",
        )
    return Finding(subject, "ok", "metrics can be read")


def _log(log: str, folder: Path) -> Iterator[Finding]:
    """Find out whether the log can be written."""
    if "://" in log:
        yield from _storage(log)
        return
    path = folder / log
    if not Path(log).is_absolute():
        yield Finding("log", "ok", f"a relative path: it is {path}")
    if path.is_dir():
        yield Finding("log", "problem", f"{path} is a folder", f"name a file in {our.LOG}")
        return
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if nearest != path and not nearest.is_dir():
        yield Finding(
            "log",
            "problem",
            f"{nearest} is no folder, so {path} cannot be made",
            f"change {our.LOG}",
        )
        return
    if not os.access(nearest, os.W_OK):
        yield Finding(
            "log",
            "problem",
            f"you may not write to {nearest}",
            "give the server's user the right to write there, or change "
            f"{our.LOG}; if the server has another user than you, run this command as that user",
        )
        return
    if nearest == path:
        yield Finding("log", "ok", f"{path} is there, with {path.stat().st_size} bytes")
    else:
        yield Finding("log", "ok", f"{path} can be made; it is made at the first batch")
    yield _disk(nearest)


def _disk(path: Path) -> Finding:
    free = shutil.disk_usage(path).free
    text = f"{free / 1e9:.1f} GB are free where the log is"
    remedy = f"make room there, or change {our.LOG}; a record takes about 1 kB"
    if free < _TOO_FEW_BYTES:
        return Finding("disk", "problem", text, remedy)
    if free < _FEW_BYTES:
        return Finding("disk", "warning", text, remedy)
    return Finding("disk", "ok", text)


def _storage(url: str) -> Iterator[Finding]:
    """Find out whether a log in object storage can be written.

    Settings refuse URLs in this version, so nothing comes here yet. Whoever makes them accept one
    tries its credentials here, and shows the URL by `_shown` alone.
    """
    yield Finding("log", "warning", f"whether {_shown(url)} can be written is not tried")


def _console(environ: Mapping[str, str]) -> Finding:
    """Find out whether the lines of the console are shown."""
    level = environ.get("VLLM_LOGGING_LEVEL", "").strip().upper()
    if level in ("WARNING", "ERROR", "CRITICAL"):
        return Finding(
            "console",
            "warning",
            "VLLM_LOGGING_LEVEL hides the lines, which are of level INFO",
            "unset VLLM_LOGGING_LEVEL",
        )
    return Finding("console", "ok", "lines appear in vLLM's log, at most one a second")
