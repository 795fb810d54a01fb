"""`tune` and `capacity` say what they lack, before they do anything long."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from synthetic import records, write_log
from test_cli import Capture, failure
from test_request_trace import RECORD

from sched_profiler.cli import main
from sched_profiler.manifest import Run, write_manifest
from sched_profiler.request_record import RequestRecord, encode_request

FACTS: dict[str, Any] = {
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 64,
    "block_size": 16,
    "num_blocks": 7500,
    "max_model_len": 4096,
}


def log_in(folder: Path, count: int = 300, **facts: Any) -> Path:
    """Write a log, with a manifest that has these facts."""
    batches = [
        attrs.evolve(
            one,
            run_id="r1",
            dp_rank=0,
            num_new_reqs=int(one.batch_id % 9 == 0),
            idle_duration_ms=0.5,
        )
        for one in records(count)
    ]
    log = write_log(folder / "log.jsonl", batches)
    run = Run("r1", dp_rank=0, facts=FACTS | facts, num_dropped=lambda: 0)
    write_manifest(folder / "log.r1.run.json", run.manifest(log=log.name, started=0.0, updated=0.0))
    return log


def trace_beside(log: Path, *requests: RequestRecord) -> None:
    """Write the request trace of a log."""
    lines = [encode_request(request) for request in requests]
    log.with_suffix(".requests.jsonl").write_bytes(b"".join(lines))


@pytest.mark.parametrize("command", ["tune", "capacity"])
def test_without_a_manifest_it_is_said_what_is_missing(
    tmp_path: Path, capsys: Capture, command: str
) -> None:
    """The limits of the scheduler are in it."""
    log = write_log(tmp_path / "log.jsonl", records(30))
    assert "no run manifest (*.run.json) beside the logs" in failure(capsys, command, log)


@pytest.mark.parametrize("command", ["tune", "capacity"])
def test_a_manifest_that_lacks_a_limit_is_an_error(
    tmp_path: Path, capsys: Capture, command: str
) -> None:
    """By its name."""
    log = log_in(tmp_path, 30, max_model_len=None)
    assert "manifest of run r1 does not tell max_model_len" in failure(capsys, command, log)


def test_tune_without_requests_says_how_to_record_them(tmp_path: Path, capsys: Capture) -> None:
    """And that they may come from elsewhere."""
    message = failure(capsys, "tune", log_in(tmp_path, 30))
    assert "there is no request trace of run r1 beside the logs" in message
    assert "SCHED_PROFILER_REQUEST_TRACE=true, or name one with --trace" in message


def test_a_trace_of_other_runs_is_none(tmp_path: Path, capsys: Capture) -> None:
    """What counts is the run of the log."""
    log = log_in(tmp_path, 30)
    trace_beside(log, RECORD)
    assert RECORD.run_id != "r1"
    assert "no request trace of run r1" in failure(capsys, "tune", log)


def test_too_few_batches_are_an_error_before_vllm_is_loaded(
    tmp_path: Path, capsys: Capture
) -> None:
    """That takes long."""
    log = log_in(tmp_path, 30)
    trace_beside(log, attrs.evolve(RECORD, run_id="r1"))
    for command in ("tune", "capacity"):
        assert "a fit needs 100" in failure(capsys, command, log)


def test_without_vllm_the_error_says_what_to_install(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scheduler is what replays."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    log = log_in(tmp_path)
    trace_beside(
        log, *(attrs.evolve(RECORD, run_id="r1", request_number=number) for number in range(2))
    )
    for command in ("tune", "capacity"):
        assert main([command, str(log)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "a replay needs vLLM" in captured.err
        assert 'pip install "sched-profiler[vllm]"' in captured.err


def test_a_damaged_trace_is_an_error_with_its_line(tmp_path: Path, capsys: Capture) -> None:
    """Recorded or given."""
    log = log_in(tmp_path, 30)
    log.with_suffix(".requests.jsonl").write_bytes(encode_request(RECORD) + b"[]\n")
    assert "line 2 of" in failure(capsys, "tune", log)
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_time,num_prompt_tokens,num_output_tokens\n0,1,x\n")
    assert "line 2 of" in failure(capsys, "capacity", log, "--trace", trace)


@pytest.mark.parametrize(
    "arguments",
    [
        ("tune", "--max-num-seqs", "0"),
        ("tune", "--max-num-batched-tokens", "256,,512"),
        ("tune", "--max-num-batched-tokens", "many"),
        ("tune", "--replays", "1"),
        ("tune", "--requests", "1"),
        ("capacity", "--requests", "x"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    tmp_path: Path, capsys: Capture, arguments: tuple[str, ...]
) -> None:
    """With what they may be."""
    command, *options = arguments
    with pytest.raises(SystemExit) as end:
        main([command, str(tmp_path / "log.jsonl"), *options])
    assert end.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_capacity_from_a_log_alone_is_an_estimate(tmp_path: Path, capsys: Capture) -> None:
    """In words and as data."""
    log = log_in(tmp_path)
    assert main(["capacity", str(log)]) == 0
    assert "An estimate from the log alone" in capsys.readouterr().out
    assert main(["capacity", str(log), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kind"] == "estimate"
    assert data["recorded_requests_per_s"] > 0
