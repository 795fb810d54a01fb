"""When a part is closed is said in a way that makes sense."""

from __future__ import annotations

import pytest

from sched_profiler import Rotation, SettingError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part_bytes": 0}, "part_bytes is 0; expected a number above 0"),
        ({"part_seconds": -1}, "part_seconds is -1"),
        ({"keep_parts": 3}, "say with part_bytes or part_seconds"),
        ({"compress": "gzip"}, "say with part_bytes or part_seconds"),
        ({"part_seconds": 1, "compress": "lz4"}, "compress is 'lz4'; use gzip or zstd"),
    ],
)
def test_a_rotation_that_makes_no_sense_is_an_error(
    arguments: dict[str, object], message: str
) -> None:
    """And the message says what would."""
    with pytest.raises(SettingError, match=message):
        Rotation(**arguments)  # type: ignore[arg-type]
