"""What is constant for a run, and how it went: one small JSON file beside the log.

The manifest is written when the first record comes, renewed now and then, and completed at the end.
A run that never ended shows as such: its `ended` is null.
"""

from __future__ import annotations

import copy
import os
import platform
import socket
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict, get_args, get_origin, get_type_hints

import attrs
import orjson

from sched_profiler import __version__
from sched_profiler.codec import json_object
from sched_profiler.errors import (
    LogError,
    RecordError,
    SchemaVersionError,
    SettingError,
    shown,
)
from sched_profiler.redact import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = [
    "MANIFEST_VERSION",
    "Run",
    "RunFacts",
    "RunManifest",
    "count_removed",
    "manifest_text",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]

MANIFEST_VERSION = 1
"""Version of the manifest that this package writes."""

_LONGEST_BYTES = 1 << 20
"""A manifest takes about 1 kB; a file that is longer holds none, and is never held in memory."""


class RunFacts(TypedDict, total=False):
    """What only the engine knows of a run; see `RunManifest`. What is unknown is left out."""

    engine: str
    engine_version: str
    model: str
    max_num_batched_tokens: int
    max_num_seqs: int
    long_prefill_token_threshold: int
    max_model_len: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    scheduling_policy: str
    block_size: int
    num_blocks: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    async_scheduling: bool


def _field(doc: str, **options: Any) -> Any:
    return attrs.field(metadata={"doc": doc}, **options)


@attrs.frozen(kw_only=True)
class RunManifest:
    """One run: the life of one engine, on one rank. Unknown is null."""

    manifest_version: int = _field("Version of this layout.", default=MANIFEST_VERSION)
    run_id: str = _field("The `run_id` of every record of the run.")
    dp_rank: int | None = _field("Data-parallel rank of the engine.", default=None)
    log: str = _field(
        "Where the records are: the name of the file, or the URL of the store without credentials. "
        "With rotation, the name of the part that grows."
    )
    started: float = _field("Unix time in seconds of the first record.")
    updated: float = _field("Unix time in seconds at which this was written: a sign of life.")
    ended: float | None = _field(
        "Unix time in seconds of the end. Null while the run goes on, and for ever if it was "
        "killed.",
        default=None,
    )
    clean_end: bool = _field(
        "Whether the run ended in order, with everything written that was taken.", default=False
    )
    num_written_records: int = _field("Records handed to the operating system.", default=0)
    num_dropped_records: int = _field(
        "Batches that have no record, and never will: the queue was full, or writing failed.",
        default=0,
    )
    num_removed_records: int = _field(
        "Written records that gave way to a limit of size or count.", default=0
    )
    num_missing_elsewhere: dict[str, int] = _field(  # noqa: RUF009 - attrs makes a dict for each
        "Records that other sinks of the run had not brought home when this was written, by the "
        "names of their classes; those that had them all are left out.",
        factory=dict,
    )
    host: str = _field("Name of the machine.")
    pid: int = _field("Process that wrote the log.")
    python_version: str = _field("Version of Python.")
    sched_profiler_version: str = _field("Version of this package.")
    engine: str | None = _field("Name of the engine, such as vllm.", default=None)
    engine_version: str | None = _field("Its version.", default=None)
    model: str | None = _field("Name or path of the model.", default=None)
    max_num_batched_tokens: int | None = _field("Most tokens in a batch.", default=None)
    max_num_seqs: int | None = _field("Most requests that run at a time.", default=None)
    long_prefill_token_threshold: int | None = _field(
        "Most tokens of a prefill chunk; 0 for no such limit.", default=None
    )
    max_model_len: int | None = _field(
        "Most tokens of a request, prompt and output together.", default=None
    )
    enable_chunked_prefill: bool | None = _field(
        "Whether a prompt may be computed in several batches.", default=None
    )
    enable_prefix_caching: bool | None = _field(
        "Whether the KV cache of a prompt is kept for others that begin like it.", default=None
    )
    scheduling_policy: str | None = _field("Who is served first, such as fcfs.", default=None)
    block_size: int | None = _field("Tokens in a block of the KV cache.", default=None)
    num_blocks: int | None = _field("Blocks in the KV cache.", default=None)
    tensor_parallel_size: int | None = _field("Ranks of tensor parallelism.", default=None)
    pipeline_parallel_size: int | None = _field("Ranks of pipeline parallelism.", default=None)
    data_parallel_size: int | None = _field("Ranks of data parallelism.", default=None)
    async_scheduling: bool | None = _field(
        "Whether a batch is scheduled while the one before it runs.", default=None
    )

    @property
    def end(self) -> str:
        """How the run ended: `clean`, `incomplete`, or `none` if it goes on or was killed."""
        if self.ended is None:
            return "none"
        return "clean" if self.clean_end else "incomplete"


attrs.resolve_types(RunManifest)
_FACTS = {
    name: kind
    for name, kind in get_type_hints(RunManifest).items()
    if name in get_type_hints(RunFacts)
}


class Run:
    """What a profiler tells its sink of the run that the records are from.

    Attributes:
        run_id: identifier of the run.
        dp_rank: data-parallel rank of the engine, if it has one.
        facts: what the engine told.
        num_dropped: returns how many batches have no record so far.
        missing_elsewhere: returns how many records other sinks of the run lack, by their names.
    """

    def __init__(
        self,
        run_id: str,
        *,
        dp_rank: int | None,
        facts: Mapping[str, Any],
        num_dropped: Callable[[], int],
    ) -> None:
        """Describe a run.

        Raises:
            SettingError: if a fact is unknown or of a wrong type.
        """
        self.run_id = run_id
        self.dp_rank = dp_rank
        self.facts = {
            name: _checked(name, value) for name, value in facts.items() if value is not None
        }
        self.num_dropped = num_dropped
        self.missing_elsewhere: Callable[[], dict[str, int]] = dict

    def with_others(self, missing: Callable[[], dict[str, int]]) -> Run:
        """Return the same run for the log of several sinks, the others of which lack so many."""
        run = copy.copy(self)
        run.missing_elsewhere = missing
        return run

    def with_losses(self, num_lost: Callable[[], int]) -> Run:
        """Return the same run for one of several sinks, which has lost so many records more."""
        run = copy.copy(self)
        run.num_dropped = lambda: self.num_dropped() + num_lost()
        return run

    def manifest(self, *, log: str, started: float, updated: float) -> RunManifest:
        """Return the manifest of this run, with no records yet."""
        return RunManifest(
            run_id=self.run_id,
            dp_rank=self.dp_rank,
            log=without_credentials(log),
            started=started,
            updated=updated,
            host=socket.gethostname(),
            pid=os.getpid(),
            python_version=platform.python_version(),
            sched_profiler_version=__version__,
            **self.facts,
        )


def _checked(name: str, value: Any) -> Any:
    if name not in _FACTS:
        raise SettingError(
            f"there is no fact of a run named {name}; there are {', '.join(sorted(_FACTS))}"
        )
    kind = next(kind for kind in (bool, int, str) if kind in _FACTS[name].__args__)
    if type(value) is not kind:
        raise SettingError(f"{name} is {shown(value)}; expected {kind.__name__}")
    # The model may be named by a URL.
    return without_credentials(value) if isinstance(value, str) else value


def write_manifest(path: Path, manifest: RunManifest) -> None:
    """Write a manifest so that a reader finds the old one or the new one, and never a half.

    Raises:
        OSError: if it cannot be written.
    """
    text = orjson.dumps(
        attrs.asdict(manifest), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    )
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_bytes(text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def count_removed(manifest: Path, num_records: int) -> None:
    """Note in the manifest of a run that has ended that records of it gave way.

    Raises:
        OSError: if the manifest cannot be read or written.
    """
    try:
        before = read_manifest(manifest)
    except (FileNotFoundError, LogError):
        return  # nothing to be true to
    total = before.num_removed_records + num_records
    write_manifest(manifest, attrs.evolve(before, num_removed_records=total))


def manifest_text(stream: BinaryIO) -> bytes:
    """Return what a file holds for `parse_manifest`; of one that is too long, not all.

    Raises:
        OSError: if it cannot be read.
    """
    return stream.read(_LONGEST_BYTES + 1)


def read_manifest(path: Path) -> RunManifest:
    """Return the manifest that a file of this machine holds.

    Raises:
        LogError: naming the file and what is wrong with it.
        OSError: if it cannot be read.
    """
    with path.open("rb") as stream:
        return parse_manifest(manifest_text(stream), path.name)


def parse_manifest(text: bytes, name: str) -> RunManifest:
    """Return the manifest that a file holds; fields that this version does not know are ignored.

    Raises:
        LogError: naming the file and what is wrong with it.
    """
    if len(text) > _LONGEST_BYTES:
        raise LogError(f"{name} is no run manifest: it is longer than 1 MiB; move it away")
    try:
        fields = json_object(text, "manifest_version", MANIFEST_VERSION)
    except SchemaVersionError as error:
        raise LogError(f"{name}: {error}") from None
    except RecordError as error:
        raise _no_manifest(name, str(error)) from None
    known = {}
    for field in attrs.fields(RunManifest):
        if field.name not in fields:
            if field.default is attrs.NOTHING:
                raise _no_manifest(name, f"it lacks {field.name}")
            continue
        value = fields[field.name]
        if not _has_type(value, field.type):
            raise _no_manifest(name, f"{field.name} is {shown(value)}")
        known[field.name] = value
    return RunManifest(**known)


def _no_manifest(name: str, reason: str) -> LogError:
    return LogError(f"{name} is no run manifest: {reason}; copy it again, or move it away")


def _has_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is dict:
        # The names of a JSON object are strings.
        (_, of_values) = get_args(kind)
        return type(value) is dict and all(_has_type(item, of_values) for item in value.values())
    kinds = get_args(kind) or (kind,)
    return type(value) in kinds or (type(value) is int and float in kinds)
