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
    folder.mkdir(exist_ok=True)
    log = write_log(folder / "log.jsonl", batches)
    run = Run("r1", dp_rank=0, facts=FACTS | facts, num_dropped=lambda: 0)
    write_manifest(folder / "log.r1.run.json", run.manifest(log=log.name, started=0.0, updated=0.0))
    return log


def trace_beside(log: Path, *requests: RequestRecord) -> None:
    """Write the request trace of a log."""
    lines = [encode_request(request) for request in requests]
    log.with_suffix(".requests.jsonl").write_bytes(b"".join(lines))


def test_tune_without_a_manifest_says_what_is_missing(tmp_path: Path, capsys: Capture) -> None:
    """The limits of the scheduler are in it."""
    log = write_log(tmp_path / "log.jsonl", records(30))
    assert "no run manifest (*.run.json) beside the logs" in failure(capsys, "tune", log)


def test_tune_with_a_manifest_that_lacks_a_limit_is_an_error(
    tmp_path: Path, capsys: Capture
) -> None:
    """By its name."""
    log = log_in(tmp_path, 30, max_model_len=None)
    assert "manifest of run r1 does not tell max_model_len" in failure(capsys, "tune", log)


def test_capacity_names_the_settings_that_a_replay_lacks(tmp_path: Path, capsys: Capture) -> None:
    """And the options that give them; what the log tells is not asked for."""
    log = log_in(tmp_path, 30)
    trace_beside(log, attrs.evolve(RECORD, run_id="r1"))
    (manifest,) = tmp_path.glob("*.run.json")
    manifest.unlink()
    message = failure(capsys, "capacity", log, "--num-blocks", "100")
    assert "tells max_num_seqs, block_size of run r1" in message
    assert "give --max-num-seqs N --block-size N" in message


def test_capacity_with_a_manifest_that_lacks_a_setting_asks_for_that_one(
    tmp_path: Path, capsys: Capture
) -> None:
    """And for no other."""
    log = log_in(tmp_path, 30, num_blocks=None)
    trace_beside(log, attrs.evolve(RECORD, run_id="r1"))
    assert failure(capsys, "capacity", log).rstrip().endswith("give --num-blocks N")


def test_with_the_options_a_replay_needs_no_manifest(tmp_path: Path, capsys: Capture) -> None:
    """Then it goes on to what comes next, here a fit that lacks batches."""
    log = log_in(tmp_path, 30)
    trace_beside(log, attrs.evolve(RECORD, run_id="r1"))
    (manifest,) = tmp_path.glob("*.run.json")
    manifest.unlink()
    options = ("--max-num-seqs", "64", "--block-size", "16", "--num-blocks", "7500")
    assert "a fit needs 100" in failure(capsys, "capacity", log, *options)


def test_an_estimate_needs_no_manifest(tmp_path: Path, capsys: Capture) -> None:
    """Without max_num_seqs it lacks the rate at which that is reached, and says so."""
    log = log_in(tmp_path)
    assert main(["capacity", str(log), "--json"]) == 0
    with_manifest = json.loads(capsys.readouterr().out)
    assert with_manifest["assumed"] == []
    (manifest,) = tmp_path.glob("*.run.json")
    manifest.unlink()
    assert main(["capacity", str(log), "--json"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert without["seats_requests_per_s"] is None
    assert "give --max-num-seqs N" in without["assumed"][0]
    assert main(["capacity", str(log), "--json", "--max-num-seqs", "64"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("assumed") == ["max_num_seqs=64: as it was given."]
    assert told == {name: value for name, value in with_manifest.items() if name != "assumed"}
    assert main(["capacity", str(log), "--max-num-seqs", "64"]) == 0
    assert "Assumed: max_num_seqs=64: as it was given." in capsys.readouterr().out


def test_an_option_goes_before_the_manifest(tmp_path: Path, capsys: Capture) -> None:
    """And both are told."""
    log = log_in(tmp_path)
    assert main(["capacity", str(log), "--json"]) == 0
    recorded = json.loads(capsys.readouterr().out)
    assert main(["capacity", str(log), "--json", "--max-num-seqs", "128"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["assumed"] == ["max_num_seqs=128: as it was given; the run manifest says 64."]
    assert told["seats_requests_per_s"] == pytest.approx(2 * recorded["seats_requests_per_s"])


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
        assert 'pip install ".[vllm]"' in captured.err


def test_a_damaged_trace_is_an_error_with_its_line(tmp_path: Path, capsys: Capture) -> None:
    """Recorded or given."""
    log = log_in(tmp_path, 30)
    log.with_suffix(".requests.jsonl").write_bytes(encode_request(RECORD) + b"[]\n")
    assert "line 2 of" in failure(capsys, "tune", log)
    assert "--skip-invalid goes on without such lines" in failure(capsys, "tune", log)
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_time,num_prompt_tokens,num_output_tokens\n0,1,x\n")
    assert "line 2 of" in failure(capsys, "capacity", log, "--trace", trace)


def test_damaged_lines_can_be_skipped_and_are_counted(tmp_path: Path, capsys: Capture) -> None:
    """Of the log and of the request trace; then it goes on, here to a fit that lacks batches."""
    log = log_in(tmp_path, 30)
    with log.open("ab") as file:
        file.write(b"{}\n")
    request = encode_request(attrs.evolve(RECORD, run_id="r1"))
    log.with_suffix(".requests.jsonl").write_bytes(b"[]\n{}\n" + request)
    for command in ("tune", "capacity"):
        assert main([command, str(log), "--skip-invalid"]) == 2
        said = capsys.readouterr().err
        assert "3 invalid lines left out\n" in said
        assert "a fit needs 100" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("tune", "--max-num-seqs", "0"),
        ("tune", "--max-num-batched-tokens", "256,,512"),
        ("tune", "--max-num-batched-tokens", "many"),
        ("tune", "--replays", "1"),
        ("tune", "--requests", "1"),
        ("capacity", "--requests", "x"),
        ("capacity", "--max-num-seqs", "0"),
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
