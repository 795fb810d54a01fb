"""What the documentation says of findings is measured, and holds for a small part of it."""

from __future__ import annotations

import findings


def test_clear_faults_are_found_and_healthy_runs_are_left_alone() -> None:
    """All but one of what one seed plants clearly; not one false alarm."""
    measured = findings.measure(1)
    assert measured["num_steady_alarms"] == 0
    assert sum(row["false"] for row in measured["alarms"]) == 0
    clear = [row for row in measured["rows"] if row["size"] == "clear"]
    assert sum(row["found"] for row in clear) >= len(clear) - 1
