"""Finds the sinks that `SCHED_PROFILER_SINKS` names, ours and those of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from sched_profiler.errors import SchedProfilerError, SettingError
from sched_profiler.messages import logger
from sched_profiler.settings import SINKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sched_profiler.sinks.base import Sink, SinkContext

__all__ = ["GROUP", "find_sinks", "make_sinks"]

GROUP = "sched_profiler.sinks"
"""The entry-point group; an entry point's name is what the variable says, its value a factory."""


def find_sinks(names: Iterable[str]) -> list[EntryPoint]:
    """Return the entry points of the sinks of these names, without importing any.

    Raises:
        SettingError: if a name is unknown, or two packages claim it; it names the variable, the
            value and the known names.
    """
    known: dict[str, set[EntryPoint]] = {}
    for entry_point in entry_points(group=GROUP):
        known.setdefault(entry_point.name, set()).add(
            # Without its distribution: a package that is found twice is one.
            EntryPoint(entry_point.name, entry_point.value, entry_point.group)
        )
    names = list(names)
    asked = f"{SINKS}={','.join(names)!r}"
    for name in names:
        if name not in known:
            raise SettingError(
                f"{asked} asks for {name!r}, which is no sink; known are {', '.join(sorted(known))}"
            )
        if len(known[name]) > 1:
            claims = " and ".join(sorted(entry_point.value for entry_point in known[name]))
            raise SettingError(f"{asked}: {name!r} is both {claims}; uninstall one of the packages")
    return [next(iter(known[name])) for name in names]


def make_sinks(entry_points: Sequence[EntryPoint], context: SinkContext) -> dict[str, Sink]:
    """Make the sinks, by their names; one that cannot be made does not stop the others.

    Raises:
        SettingError: if none of them can be made.
    """
    strict = context.settings.strict
    sinks: dict[str, Sink] = {}
    for entry_point in entry_points:
        try:
            sinks[entry_point.name] = entry_point.load()(context)
        except SchedProfilerError as error:
            # Its message is all there is to say.
            logger.error("%s", error)  # noqa: TRY400
        except Exception:
            if strict:
                raise
            logger.exception("sink %s could not be made", entry_point.name)
    if not sinks:
        names = ", ".join(entry_point.name for entry_point in entry_points)
        raise SettingError(
            f"of the sinks that are asked for ({names}) none could be made; the log says above why"
        )
    return sinks
