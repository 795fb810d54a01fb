"""Whoever holds the lock of a run may look after its files, and nobody else."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from sched_profiler.sinks.locks import RunLocks


def test_the_lock_of_a_live_run_cannot_be_taken(tmp_path: Path) -> None:
    """Not in the same process either; and one that was released leaves no file."""
    mine, theirs = RunLocks(), RunLocks()
    path = tmp_path / ".lock"
    assert mine.take(path)
    assert mine.take(path)
    assert not theirs.take(path)
    mine.release(path)
    assert not path.exists()
    assert theirs.take(path)
    theirs.release_all()


def test_a_lock_whose_file_is_gone_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removed it between our opening and our locking it."""
    path = tmp_path / ".lock"
    flock = fcntl.flock

    def remove_first(file: int, how: int) -> None:
        path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    assert not RunLocks().take(path)
