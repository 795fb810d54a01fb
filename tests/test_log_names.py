"""The files of a log have names that sort by time and keep runs apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from sched_profiler import SettingError
from sched_profiler.log_names import LogNames, check_placeholders, is_part, placeholder_values


def test_names_of_closed_parts_are_known_from_others() -> None:
    """By time, run and batch."""
    assert is_part("log.20261124T113336.123Z-run-000000000.jsonl.gz")
    assert not is_part("log.run.jsonl")
    assert not is_part("log.2026.jsonl")


def names_of(template: Path, run_id: str = "r") -> LogNames:
    """Return the names of a run."""
    values = placeholder_values(run_id=run_id, dp_rank=None, pid=1, time_ns=0)
    return LogNames.of_run(str(template), label="{run_id}", values=values)


def test_a_part_knows_when_it_began(tmp_path: Path) -> None:
    """To the millisecond."""
    names = names_of(tmp_path / "log.jsonl")
    path = names.closed(1_700_000_000_123_000_000, 7)
    assert path.name == "log.20231114T221320.123Z-r-000000007.jsonl"
    path.touch()
    (part,) = names.parts()
    assert part.time_ns == 1_700_000_000_123_000_000
    assert part.first_batch_id == 7
    assert not part.is_compressed


@pytest.mark.parametrize("template", ["log.jsonl", "{run_id}.jsonl", "a-{run_id}-{date}.x.jsonl"])
def test_the_other_runs_of_a_log_are_known_by_their_manifests(
    tmp_path: Path, template: str
) -> None:
    """With the names that they have themselves; files of others are not taken for theirs."""
    mine, theirs = names_of(tmp_path / template, "mine"), names_of(tmp_path / template, "theirs")
    for names in (mine, theirs):
        names.manifest.touch()
        names.closed(10**18, 0).touch()
    (tmp_path / "log.backup.jsonl").touch()
    if template != "{run_id}.jsonl":  # there, any name may be that of a run
        (tmp_path / "log.run.json").touch()
    (found,) = mine.other_runs()
    assert found == theirs
    assert [part.own for part in mine.parts_of_all_runs()] == sorted([mine.own, theirs.own])
    assert [part.own for part in mine.parts()] == [mine.own]


@pytest.mark.parametrize("stem", ["log", "{run_id}", "a-{run_id}"])
def test_the_runs_of_one_rank_are_not_those_of_another(tmp_path: Path, stem: str) -> None:
    """Else rank 0 would give the files that a killed rank 1 left names of its own log."""
    first = names_of(tmp_path / f"{stem}.jsonl", "first")
    second = names_of(tmp_path / f"{stem}.dp1.jsonl", "second")
    for names in (first, second):
        names.manifest.touch()
        names.current(rotates=True).touch()
        names.closed(10**18, 0).touch()
    for names in (first, second):
        assert list(names.other_runs()) == []
        assert [part.own for part in names.parts_of_all_runs()] == [names.own]


def test_the_label_of_a_run_has_no_dot_though_the_host_has() -> None:
    """So it is known where it begins."""
    values = {"host": "gpu-1.example.com", "run_id": "r"}
    names = LogNames.of_run("log.jsonl", label="{host}-{run_id}", values=values)
    assert names.own == "log.gpu-1_example_com-r"


@pytest.mark.parametrize("path", ["{x}", "a/{}", "{RUN_ID}"])
def test_only_our_placeholders_are_placeholders(path: str) -> None:
    """Others are an error that names them and ours."""
    with pytest.raises(SettingError, match=r"no placeholder; there are \{date\}, \{dp_rank\}"):
        check_placeholders(path)
    check_placeholders("{date}/{dp_rank}/{host}/{pid}-{run_id}{.jsonl")
