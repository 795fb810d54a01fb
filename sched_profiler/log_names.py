"""What the files of a log are called.

The path of a log may hold placeholders. With rotation, a run has these files in one folder, here of
the log `sched.jsonl` and the run `1f2844d5b97a`:

- `sched.1f2844d5b97a.jsonl`: the current part, which grows;
- `sched.20261124T113336.123Z-1f2844d5b97a-000000000.jsonl.gz`: a closed part, named for the UTC
  time at which it began, the run, and its first batch. Such names sort by time;
- `sched.1f2844d5b97a.run.json`: the manifest;
- `.sched.1f2844d5b97a.lock`: locked as long as the run lives.

The request trace of a log is a log of its own beside it, `sched.requests.jsonl`, with the same
kinds of files.

Without rotation the current part is the path itself, unless another engine writes to it, and there
is no lock beside it.
"""

from __future__ import annotations

import glob
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sched_profiler.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "COMPRESSED",
    "MANIFEST_SUFFIX",
    "NS_PER_MS",
    "LogNames",
    "Part",
    "beginning_of_part",
    "check_placeholders",
    "fill",
    "is_part",
    "is_request_trace",
    "placeholder_values",
    "request_trace_of",
]

MANIFEST_SUFFIX = ".run.json"
NS_PER_MS = 1_000_000
COMPRESSED = (".gz", ".zst")
"""What the name of a compressed part ends with."""

_TRACE = ".requests."
_DEFAULT_STEM = "scheduler_profiling"
_PLACEHOLDERS = ("date", "dp_rank", "host", "pid", "run_id")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_TIME = r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z"
_PART = re.compile(rf"\.(?P<time>{_TIME})-(?P<label>.+)-[0-9]{{9,}}\.")


def check_placeholders(path: str) -> None:
    """Check that a path has no placeholder but ours.

    Raises:
        SettingError: naming the placeholder and those that there are.
    """
    for name in _PLACEHOLDER.findall(path):
        if name not in _PLACEHOLDERS:
            known = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
            raise SettingError(
                f"{{{name}}} in the path of a log is no placeholder; there are {known}"
            )


def placeholder_values(
    *, run_id: str, dp_rank: int | None, pid: int, time_ns: int
) -> dict[str, str]:
    """Return what stands for each placeholder in the names of one run."""
    return {
        "run_id": run_id,
        "dp_rank": "none" if dp_rank is None else str(dp_rank),
        "host": re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "localhost",
        "pid": str(pid),
        "date": datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d"),
    }


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace each placeholder in `text` by its value."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def is_part(name: str) -> bool:
    """Tell whether a name is that of a closed part."""
    return _PART.search(name) is not None


def request_trace_of(log: str) -> str:
    """Return the path, or the URL, of the request trace of a log."""
    folder, slash, name = log.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    if slash and not name:
        # Under a prefix.
        return f"{folder}/{_DEFAULT_STEM}{_TRACE}jsonl"
    return f"{folder}{slash}{stem}{_TRACE}{suffix}" if dot else f"{log}{_TRACE}jsonl"


def is_request_trace(name: str) -> bool:
    """Tell whether a file name is that of a request trace, of one of its parts or its manifest."""
    return _TRACE in name


def beginning_of_part(name: str) -> tuple[str, float] | None:
    """Return what the names of all parts of its run share, and when a closed part began.

    Returns:
        the Unix time in seconds with it; None for what is no closed part.
    """
    match = _PART.search(name)
    if match is None:
        return None
    try:
        return f"{name[: match.start()]}.{match['label']}", _unix_time(match["time"])
    except ValueError:
        return None  # such as a 13th month


def _unix_time(text: str) -> float:
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC).timestamp()


@attrs.frozen(order=True)
class Part:
    """A closed part of a run."""

    time: str
    """When it began, UTC; as text it sorts by time."""
    own: str
    """What the names of the run's other files begin with."""
    first_batch_id: int
    path: Path

    @property
    def is_compressed(self) -> bool:
        """Whether it is compressed already."""
        return self.path.suffix in COMPRESSED

    @property
    def time_ns(self) -> int:
        """When it began, in ns since the Unix epoch."""
        return round(_unix_time(self.time) * 1000) * NS_PER_MS


@attrs.frozen
class LogNames:
    """The names of the files of one run.

    Attributes:
        template: path of the log, with its placeholders.
        folder: where all files of the run are.
        stem: name of the log without its suffix.
        suffix: `.jsonl`, mostly.
        label: tells the parts of this run from those of others.
        own: what the names of the other files of this run begin with.
    """

    template: str
    folder: Path
    stem: str
    suffix: str
    label: str
    own: str

    @classmethod
    def of_run(cls, template: str, *, label: str, values: Mapping[str, str]) -> LogNames:
        """Fill in the placeholders of `template` and `label`."""
        # A dot ends the stem: where a label had one, another log might take the run for its own.
        path, label = Path(fill(template, values)), fill(label, values).replace(".", "_")
        stem = path.stem
        own = stem if "{run_id}" in Path(template).name else f"{stem}.{label}"
        return cls(template, path.parent, stem, path.suffix, label, own)

    def current(self, *, rotates: bool) -> Path:
        """Return the path of the file that grows."""
        return self.folder / ((self.own if rotates else self.stem) + self.suffix)

    @property
    def manifest(self) -> Path:
        """Path of the manifest."""
        return self.folder / (self.own + MANIFEST_SUFFIX)

    @property
    def lock(self) -> Path:
        """Path of the file that is locked as long as the run lives."""
        return self.folder / f".{self.own}.lock"

    def closed(self, time_ns: int, first_batch_id: int) -> Path:
        """Return the path of a part that began then."""
        moment = datetime.fromtimestamp(time_ns / 1e9, UTC)
        time = f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"
        name = f"{self.stem}.{time}-{self.label}-{first_batch_id:09d}{self.suffix}"
        return self.folder / name

    def parts(self) -> list[Part]:
        """Return the closed parts of this run, oldest first."""
        return [part for part in self.parts_of_all_runs() if part.own == self.own]

    def parts_of_all_runs(self) -> list[Part]:
        """Return the closed parts of all runs of this log, oldest first.

        Of a part that is just being compressed, and is there twice, one is returned.
        """
        pattern = re.compile(
            rf"(?P<stem>{self._stem_pattern()})\.(?P<time>{_TIME})-(?P<label>[^.]+)"
            rf"-(?P<first>[0-9]{{9,}}){re.escape(self.suffix)}(?:\.gz|\.zst)?"
        )
        found: dict[str, Part] = {}
        for path in self._matching(f".*{self.suffix}*"):
            match = pattern.fullmatch(path.name)
            if match is None:
                continue
            own = self._own_of(match["stem"], match["label"])
            part = Part(match["time"], own, int(match["first"]), path)
            plain = str(path.with_suffix("") if part.is_compressed else path)
            if plain not in found or part.is_compressed:
                found[plain] = part
        return sorted(found.values())

    def other_runs(self) -> Iterator[LogNames]:
        """Yield the names of the other runs of this log that have a manifest."""
        for path in self._matching(f"*{MANIFEST_SUFFIX}"):
            if is_request_trace(path.name) != is_request_trace(self.manifest.name):
                continue
            own = path.name.removesuffix(MANIFEST_SUFFIX)
            match = re.fullmatch(rf"(?P<stem>{self._stem_pattern()})(?:\.(?P<label>[^.]+))?", own)
            if match is None or (path.parent == self.folder and own == self.own):
                continue
            if "{run_id}" in Path(self.template).name:
                # What has a label besides is of another log, such as that of another rank.
                if not match["label"]:
                    run = match["run"]
                    yield attrs.evolve(self, folder=path.parent, stem=own, label=run, own=own)
            elif match["label"]:
                stem, label = match["stem"], match["label"]
                yield attrs.evolve(self, folder=path.parent, stem=stem, label=label, own=own)

    def _own_of(self, stem: str, label: str) -> str:
        return stem if "{run_id}" in Path(self.template).name else f"{stem}.{label}"

    def _stem_pattern(self) -> str:
        """Return a pattern for the stems of all runs; its group `run`, if any, is the run."""
        stem = Path(self.template).stem
        pattern = ".+?".join(map(re.escape, _PLACEHOLDER.split(stem)[::2]))
        before, run, _ = stem.partition("{run_id}")
        if run:
            texts = [re.escape(text) for text in _PLACEHOLDER.split(before)[::2]]
            known = len(".+?".join(texts))
            pattern = f"{pattern[:known]}(?P<run>[^.]+?){pattern[known + len('.+?') :]}"
        return pattern

    def _matching(self, rest: str) -> Iterator[Path]:
        """Yield the files of any run whose names go on like this after the stem."""
        template = Path(self.template)
        pattern = str(template.parent / template.stem)
        wild = "*".join(map(glob.escape, _PLACEHOLDER.split(pattern)[::2]))
        yield from map(Path, glob.iglob(wild + rest))  # noqa: PTH207 - a path with wildcards in it
