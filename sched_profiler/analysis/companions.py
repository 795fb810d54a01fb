"""Copies what stands beside logs and is about their runs: run manifests and request traces."""

from __future__ import annotations

import contextlib
import itertools
import posixpath
from operator import itemgetter
from typing import TYPE_CHECKING

from sched_profiler.analysis.arrivals import request_lines
from sched_profiler.log_files import find_manifests
from sched_profiler.manifest import parse_manifest
from sched_profiler.whole_file import whole_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sched_profiler.log_files import LogPath
    from sched_profiler.reader import Tally

__all__ = ["Manifests", "copy_request_traces"]

# What reads a folder of Parquet passes over names that begin so.
_APART = "_"


class Manifests:
    """The run manifests beside logs, as they are now: a run that lives goes on."""

    def __init__(self, *logs: LogPath) -> None:
        """Read them.

        Raises:
            LogError: if one cannot be read.
        """
        self._found = [
            (parse_manifest(text, path), path, text) for path, text in find_manifests(*logs)
        ]

    def copy(self, places: Mapping[tuple[str, int | None], Path]) -> list[Path]:
        """Write those of some runs beside a file of each; return where they are."""
        written = []
        for manifest, path, text in self._found:
            place = places.get((manifest.run_id, manifest.dp_rank))
            if place is not None and not _is_beside(place, path):
                name = _APART + posixpath.basename(path).removeprefix(_APART)
                with whole_file(place.with_name(name)) as unfinished:
                    unfinished.write_bytes(text)
                written.append(place.with_name(name))
        return written


def copy_request_traces(
    logs: tuple[LogPath, ...],
    places: Mapping[tuple[str, int | None], Path],
    tally: Tally,
    *,
    skip_invalid: bool,
) -> list[Path]:
    """Write the requests of some runs beside a file of each; return where they are.

    Raises:
        LogError: if a trace cannot be read, or a line holds no request.
    """
    unfinished: dict[Path, Path] = {}
    requests = (
        (places.get((record.run_id, record.dp_rank)), file.path, line)
        for file, line, record in request_lines(*logs, tally=tally, skip_invalid=skip_invalid)
    )
    with contextlib.ExitStack() as stack:
        for (place, source), lines in itertools.groupby(requests, itemgetter(0, 1)):
            if place is None or _is_beside(place, source):
                continue
            path = place.with_name(f"{_APART}{place.name}.requests.jsonl")
            if path not in unfinished:
                unfinished[path] = stack.enter_context(whole_file(path))
            with unfinished[path].open("ab") as file:
                file.writelines(line for *_, line in lines)
    return [*unfinished]


def _is_beside(place: Path, path: str) -> bool:
    """Tell whether a file is beside another already, and not in a store or another folder."""
    try:
        return place.with_name(posixpath.basename(path)).samefile(path)
    except OSError:
        return False
