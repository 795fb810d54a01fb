"""The settings of the runs in a log, and what to call several logs by those that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_type_hints

from sched_profiler.manifest import RunFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import pandas as pd

    from sched_profiler.manifest import RunManifest

__all__ = ["common_settings", "label_sides"]

_VERSIONS = ("python_version", "sched_profiler_version")
_SETTINGS = (*get_type_hints(RunFacts), *_VERSIONS)
_NOT_OF_THE_SCHEDULER = ("engine", "engine_version", "model", *_VERSIONS)
_TOLD_FIRST = sorted(_SETTINGS, key=lambda name: name in _NOT_OF_THE_SCHEDULER)
_MOST_TOLD = 3
_LONGEST = 32
"""Characters of a value, such as the path of a model, that a label has."""


def label_sides(
    sides: Mapping[str, tuple[pd.DataFrame, Sequence[RunManifest]]],
) -> dict[str, str]:
    """Return what to call each side: the settings in which they differ, such as `max_num_seqs=8`.

    There are three of them at most, those of the scheduler first. Sides keep their names if they
    differ in nothing that the manifests tell, or if one of them has no manifest; two that would be
    called the same have their names in front.

    Args:
        sides: by their names, such as those of their logs: a loaded frame and the manifests that
            `load_manifests` found for it.
    """
    settings = {name: _settings(df, manifests) for name, (df, manifests) in sides.items()}
    different = [
        setting
        for setting in _TOLD_FIRST
        if len({known[setting] for known in settings.values()}) > 1
    ]
    labels = {}
    for name, known in settings.items():
        told = [f"{setting}={_short(known[setting])}" for setting in different if known[setting]]
        if len(told) > _MOST_TOLD:
            told[_MOST_TOLD:] = ["…"]
        labels[name] = ", ".join(told)
    if not all(any(known.values()) for known in settings.values()) or not all(labels.values()):
        return {name: name for name in sides}
    called = list(labels.values())
    return {
        name: f"{name}: {label}" if called.count(label) > 1 else label
        for name, label in labels.items()
    }


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else f"…{value[1 - _LONGEST :]}"


def common_settings(df: pd.DataFrame, manifests: Sequence[RunManifest]) -> dict[str, Any]:
    """Return the settings that all runs of a loaded log share, without those that are unknown.

    Args:
        df: as `load` returns it.
        manifests: as `load_manifests` returns them, also those of other runs.
    """
    found = {name: _values(df, manifests, name) for name in _SETTINGS}
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def _settings(df: pd.DataFrame, manifests: Sequence[RunManifest]) -> dict[str, str]:
    """Return the settings of the runs of a side as text, empty where unknown."""
    return {name: "/".join(map(str, _values(df, manifests, name))) for name in _SETTINGS}


def _values(df: pd.DataFrame, manifests: Sequence[RunManifest], name: str) -> list[Any]:
    """Return the different values of a setting in the runs of a frame, in order."""
    runs = set(df["run_id"].dropna()) if "run_id" in df else set()
    values = {getattr(manifest, name) for manifest in manifests if manifest.run_id in runs}
    return sorted(values - {None})
