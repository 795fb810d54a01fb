"""Whatever the bytes of a log, reading it ends well: with a result or with an error of ours.

`make fuzz` runs these for a long time.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import lines, manifests, records

from sched_profiler.cli import main
from sched_profiler.codec import encode
from sched_profiler.errors import SchedProfilerError
from sched_profiler.reader import Tally, read_records
from sched_profiler.validate import validate

PATIENT = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
LOGS = st.binary(max_size=400) | st.lists(lines() | st.binary(max_size=40), max_size=5).map(
    b"\n".join
)
# Commands that load much and look at all fields.
SLOW = settings(PATIENT, max_examples=1 + settings().max_examples // 4)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the path of a log that each example writes anew."""
    return tmp_path / "run.jsonl"


@PATIENT
@given(content=LOGS, skip_invalid=st.booleans())
def test_any_bytes_are_read_or_refused(log: Path, content: bytes, *, skip_invalid: bool) -> None:
    """By the reader."""
    log.write_bytes(content)
    tally = Tally()
    with contextlib.suppress(SchedProfilerError):
        for record in read_records(log, skip_invalid=skip_invalid, tally=tally):
            assert record is not None
    assert tally.num_bytes <= len(content)


@PATIENT
@given(content=LOGS)
def test_any_bytes_are_validated_or_refused(log: Path, content: bytes) -> None:
    """By the validation, which counts consistently."""
    log.write_bytes(content)
    with contextlib.suppress(SchedProfilerError):
        report = validate(log)
        assert report.num_invalid_records <= report.num_records <= content.count(b"\n") + 1
        assert report.num_violations >= report.num_invalid_records


@PATIENT
@given(content=LOGS, manifest=st.binary(max_size=100) | manifests(), skip_invalid=st.booleans())
def test_any_log_and_any_manifest_are_verified_or_refused(
    log: Path, content: bytes, manifest: bytes, *, skip_invalid: bool
) -> None:
    """Whatever one says of the other, and whatever there is to print."""
    log.write_bytes(content)
    log.with_name("run.x.run.json").write_bytes(manifest)
    options = ["--skip-invalid"] if skip_invalid else []
    assert main(["verify", str(log), *options]) in (0, 1, 2)
    assert main(["verify", "--json", str(log), *options]) in (0, 1, 2)
    assert sorted(path.name for path in log.parent.iterdir()) == ["run.jsonl", "run.x.run.json"]


@PATIENT
@given(content=LOGS)
def test_the_command_ends_with_one_of_its_codes(log: Path, content: bytes) -> None:
    """Never with a traceback; what it prints can be printed, lone surrogates too."""
    log.write_bytes(content)
    assert main(["validate", "--json", str(log)]) in (0, 1, 2)
    assert main(["validate", str(log)]) in (0, 1, 2)


@SLOW
@given(content=LOGS | st.lists(records().map(encode), max_size=8).map(b"".join), skip=st.booleans())
@pytest.mark.parametrize(
    "arguments", [["analyze", "--json"], ["slow"], ["trace", "-o", "trace.json"]], ids=" ".join
)
def test_any_log_is_analysed_or_refused(
    log: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], content: bytes, *, skip: bool
) -> None:
    """By commands that look at all fields: no exception and no warning gets out of them."""
    monkeypatch.chdir(log.parent)
    log.write_bytes(content)
    assert main([*arguments, str(log), *(["--skip-invalid"] if skip else [])]) in (0, 1, 2)
    assert {path.name for path in log.parent.iterdir()} <= {log.name, "trace.json"}
