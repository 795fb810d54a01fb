"""The run manifests in and beside logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sched_profiler.log_files import find_manifests
from sched_profiler.manifest import parse_manifest

if TYPE_CHECKING:
    from sched_profiler.log_files import LogPath
    from sched_profiler.manifest import RunManifest

__all__ = ["load_manifests"]


def load_manifests(*logs: LogPath) -> list[RunManifest]:
    """Return the run manifests in and beside logs, in the order in which the runs started.

    They may be of other runs than those in the logs; `run_id` and `dp_rank` tell.

    Raises:
        LogError: if one cannot be read, or is none.
    """
    found = [parse_manifest(text, name) for name, text in find_manifests(*logs)]
    return sorted(found, key=lambda manifest: (manifest.started, manifest.updated))
