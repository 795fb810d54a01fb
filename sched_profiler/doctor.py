"""Says why a log is empty: everything between three variables and a file, looked at one by one.

It looks at what the engine looks at, without starting one: neither vLLM nor torch is imported.
Values are shown of our own settings only, and never a credential in them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from sched_profiler import settings as our
from sched_profiler.clock import SYSTEM_CLOCK
from sched_profiler.engines.vllm_binding import version_warning
from sched_profiler.errors import (
    LogError,
    SchedProfilerError,
    SettingError,
    UploadError,
    how_to_install,
    printable,
)
from sched_profiler.log_names import LogNames, fill, placeholder_values
from sched_profiler.manifest import read_manifest
from sched_profiler.redact import is_url, without_credentials
from sched_profiler.sinks.base import SinkContext
from sched_profiler.sinks.factories import jsonl
from sched_profiler.sinks.registry import find_sinks
from sched_profiler.sinks.remote import default_spool, split_log
from sched_profiler.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Finding", "Surroundings", "examine", "surroundings"]

_ANSWER_S = 20.0
_ALIKE = 0.85
"""How alike two names are, as `difflib` has it, of which one may be a slip for the other."""
_NO_ACCESS = (
    "give the server's user the right to write there, or change {}; if the server has another user "
    "than you, run this command as that user"
)
_TRIAL = ".sched-profiler-doctor"
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
    except (FileNotFoundError, ProcessLookupError):
        raise SchedProfilerError(
            f"there is no process {pid} here; give the number of a server that runs, on the "
            "machine or in the container where it runs (Linux only)"
        ) from None
    except OSError as error:
        raise SchedProfilerError(
            f"the environment of process {pid} cannot be read: {error.strerror}; run as its user"
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
        yield from _log(settings, place)
    if "console" in settings.sinks:
        yield _console(place.environ)


def _variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the settings themselves."""
    wrong, is_enabled = "", True
    try:
        is_enabled = our.Settings.from_environ(environ).enabled
    except SettingError as error:
        wrong = str(error)
    for name in our.VARIABLES:
        # What is wrong begins with the name of its variable.
        if environ.get(name, "").strip() and not re.match(rf"{name}\b", wrong):
            yield Finding(name, "ok", f"set to {without_credentials(environ[name].strip())}")
    if wrong:
        yield Finding("settings", "problem", wrong, "correct the variable")
    if not is_enabled:
        yield Finding(
            our.ENABLE,
            "problem",
            "profiling is not asked for",
            f"export {our.ENABLE}=true before the server is started; "
            "a service or a container does not see the variables of your shell",
        )
    for name in sorted(environ.keys() - set(our.VARIABLES)):
        like = get_close_matches(name.upper(), our.VARIABLES, n=2, cutoff=_ALIKE)
        if like or re.search("SCHED_PROFILER|SCHEDULER_PROFILING", name.upper()):
            yield Finding(
                name,
                "warning",
                "is no setting of this version; it has no effect",
                f"perhaps {' or '.join(like)} is meant"
                if like
                else f"settings are {', '.join(our.VARIABLES)}",
            )


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
                how_to_install(name),
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


def _log(settings: our.Settings, place: Surroundings) -> Iterator[Finding]:
    """Find out whether the log can be written."""
    try:
        jsonl(SinkContext(settings=settings, dp_rank=None, print_line=print))
    except SettingError as error:
        remedy = f"do what it says, or change {our.LOG} or {our.COMPRESS}"
        yield Finding("log", "problem", str(error), remedy)
        return
    subject, variable = ("spool", our.SPOOL) if is_url(settings.log) else ("log", our.LOG)
    try:
        if is_url(settings.log):
            with _as_there(place.environ):
                yield from _store(settings.log)
                yield from _spool(settings, place.folder)
        else:
            yield from _file(settings.log, place.folder)
    except OSError as error:
        # Such as a folder that one may not look into.
        text = f"{error.filename}: {error.strerror}"
        yield Finding(subject, "problem", text, _NO_ACCESS.format(variable))


def _file(log: str, folder: Path) -> Iterator[Finding]:
    path = folder / log
    if not Path(log).is_absolute():
        yield Finding("log", "ok", f"a relative path: it is {path}")
    if path.is_dir():
        yield Finding("log", "problem", f"{path} is a folder", f"name a file in {our.LOG}")
    elif obstacle := _obstacle("log", path, our.LOG):
        yield obstacle
    else:
        if path.exists():
            yield Finding("log", "ok", f"{path} is there, with {path.stat().st_size} bytes")
        else:
            yield Finding("log", "ok", f"{path} can be made; it is made at the first batch")
        yield _disk(path, our.LOG)
        yield from _last_run(path)


def _spool(settings: our.Settings, folder: Path) -> Iterator[Finding]:
    """Find out whether records can wait for their upload."""
    path = folder / settings.spool if settings.spool else default_spool()
    if path.exists() and not path.is_dir():
        yield Finding("spool", "problem", f"{path} is no folder", f"change {our.SPOOL}")
    elif obstacle := _obstacle("spool", path, our.SPOOL):
        yield obstacle
    else:
        yield Finding("spool", "ok", f"records wait in {path} until they are uploaded")
        yield _disk(path, our.SPOOL)
        yield from _last_run(path / f"{split_log(settings.log)[1]}.jsonl")


def _obstacle(subject: str, path: Path, variable: str) -> Finding | None:
    """Find out what keeps a file or a folder from being made or written to."""
    nearest = _nearest(path)
    if nearest != path and not nearest.is_dir():
        text = f"{nearest} is no folder, so {path} cannot be made"
        return Finding(subject, "problem", text, f"change {variable}")
    if not os.access(nearest, os.W_OK):
        return Finding(
            subject,
            "problem",
            f"you may not write to {nearest}",
            _NO_ACCESS.format(variable),
        )
    return None


def _nearest(path: Path) -> Path:
    """Return a path, or the first folder above it that is there."""
    return next(there for there in (path, *path.parents) if there.exists())


def _disk(path: Path, variable: str) -> Finding:
    free = shutil.disk_usage(_nearest(path)).free
    text = f"{free / 1e9:.1f} GB are free for {path}"
    remedy = f"make room there, or change {variable}; a record takes about 1 kB"
    if free < _TOO_FEW_BYTES:
        return Finding("disk", "problem", text, remedy)
    if free < _FEW_BYTES:
        return Finding("disk", "warning", text, remedy)
    return Finding("disk", "ok", text)


def _last_run(log: Path) -> Iterator[Finding]:
    """Tell what the newest manifest of a log says."""
    names = LogNames.of_run(str(log), label="", values=_values())
    # A manifest may be uploaded, and removed here, at any time.
    with contextlib.suppress(OSError, LogError):
        newest = max(
            (run.manifest for run in names.other_runs()),
            key=lambda manifest: manifest.stat().st_mtime,
            default=None,
        )
        if newest is None:
            return
        run = read_manifest(newest)
        text = (
            f"{run.run_id}, process {run.pid} on {run.host}, wrote {run.num_written_records} "
            f"records and dropped {run.num_dropped_records}; its end: {run.end}"
        )
        for sink, number in run.num_missing_elsewhere.items():
            text += f"; {number} records did not reach {printable(sink)}"
        if run.num_dropped_records:
            remedy = "sched-profiler verify, with the log, says which are missing"
            yield Finding("last run", "warning", text, remedy)
        else:
            yield Finding("last run", "ok", text)


def _values() -> dict[str, str]:
    """Return what stands for the placeholders of a log, so that all others match as well."""
    return placeholder_values(
        run_id="doctor", dp_rank=0, pid=os.getpid(), time_ns=SYSTEM_CLOCK.time_ns()
    )


def _store(url: str) -> Iterator[Finding]:
    """Find out whether objects can be written where a log in a store is to be."""
    store = Store(fill(split_log(url)[0], _values()))
    problems: list[str] = []
    # Clients of storage try again and again, some of them for minutes.
    trial = threading.Thread(target=_try_store, args=(store, problems), daemon=True)
    trial.start()
    trial.join(_ANSWER_S)
    if trial.is_alive():
        problems.append(f"{store.url} does not answer within {_ANSWER_S:.0f} s")
    if problems:
        remedy = f"check bucket, credentials and network; records wait in {our.SPOOL} until then"
        yield Finding("store", "problem", problems[0], remedy)
    else:
        yield Finding("store", "ok", f"{store.url} takes what is uploaded")


def _try_store(store: Store, problems: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _TRIAL
        file.write_bytes(b"sched-profiler doctor was here\n")
        try:
            store.put(file, _TRIAL)
        except UploadError as error:
            problems.append(str(error))
            return
    # Who may write may perhaps not remove; readers of logs pass the name over.
    with contextlib.suppress(UploadError):
        store.remove(_TRIAL)


@contextlib.contextmanager
def _as_there(environ: Mapping[str, str]) -> Iterator[None]:
    """Let the clients of storage find the credentials that the server's find."""
    before = dict(os.environ)
    _replace_environ(dict(environ))
    try:
        yield
    finally:
        _replace_environ(before)


def _replace_environ(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


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
