"""The command line."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_engine import Load, Setup, SimulatedEngine
from synthetic import batch, records, seed_record, write_log

from sched_profiler import __version__
from sched_profiler.cli import COMMANDS, main
from sched_profiler.cli.command import Command
from sched_profiler.cli.progress import progress
from sched_profiler.codec import encode
from sched_profiler.manifest import Run, write_manifest

CHARTS = {
    "model_run_histogram.png",
    "overview.png",
    "requests.png",
    "schedule_against_model_run.png",
    "schedule_histogram.png",
    "step_times.png",
    "tokens.png",
}

EXAMPLE = Path(__file__).parent.parent / "examples" / "scheduler_profiling_example.py"

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a log of 40 batches."""
    return write_log(tmp_path / "run.jsonl", records(40))


def failure(capsys: Capture, *arguments: object) -> str:
    """Run a command that must fail, and return the one line that says why."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("sched-profiler: ")
    return captured.err


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
    )


def test_analyze_prints_a_summary(log: Path, capsys: Capture) -> None:
    """The text of `summarize`, and nothing on standard error."""
    assert main(["analyze", str(log)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("40 batches of 1 run")
    assert captured.err == ""


def test_analyze_says_what_is_wrong(tmp_path: Path, capsys: Capture) -> None:
    """Below the summary, and in its JSON; the limits of the scheduler are in the manifest."""
    engine = SimulatedEngine(setup=Setup(max_num_seqs=8), load=Load(requests_per_s=30))
    log = write_log(tmp_path / "run.jsonl", engine.run(500))
    write_manifest(tmp_path / "run.run.json", engine.manifest())
    assert main(["analyze", str(log)]) == 0
    printed = capsys.readouterr().out
    assert "\n\n1 finding\n\ncritical  Requests wait for " in printed
    assert "max_num_seqs (8) are running" in printed
    assert main(["analyze", str(log), "--json"]) == 0
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["kind"] == "queue_blocked"
    assert finding["batch_ids"]


def test_analyze_says_how_much_of_a_long_log_its_findings_are_about(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its text, and for programs."""
    monkeypatch.setattr("sched_profiler.analysis.sample.MAX_STRETCHES", 2)
    log = write_log(tmp_path / "run.jsonl", records(3_000))
    assert main(["analyze", str(log)]) == 0
    assert "no findings in 1,024 batches, which are spread" in capsys.readouterr().out
    assert main(["analyze", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_batches_looked_at"] == 1_024


def test_analyze_says_that_nothing_is_wrong(tmp_path: Path, capsys: Capture) -> None:
    """Silence could mean anything."""
    log = write_log(tmp_path / "run.jsonl", SimulatedEngine().run(300))
    assert main(["analyze", str(log)]) == 0
    assert capsys.readouterr().out.endswith("\n\nno findings\n")


def test_analyze_says_of_which_runs_it_cannot_tell(tmp_path: Path, capsys: Capture) -> None:
    """No findings in too few batches are no good news."""
    short, long = (
        str(write_log(tmp_path / f"{number}.jsonl", SimulatedEngine(run_id=f"r{number}").run(n)))
        for number, n in enumerate((109, 110))
    )
    for logs, said, count in (
        ([short], "no findings: too short to tell, with fewer than 110 batches\n", 1),
        (
            [short, long],
            "no findings: 1 of 2 runs are too short to tell, with fewer than 110 batches\n",
            1,
        ),
        ([long], "no findings\n", 0),
    ):
        assert main(["analyze", *logs]) == 0
        assert capsys.readouterr().out.endswith(f"\n\n{said}")
        assert main(["analyze", *logs, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["num_runs_too_short"] == count


def test_several_logs_are_taken_together(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """One summary of all of them."""
    other = write_log(tmp_path / "other.jsonl", records(10, run_id="other"))
    assert main(["analyze", str(log), str(other)]) == 0
    assert capsys.readouterr().out.startswith("50 batches of 2 runs")


def test_json_is_all_there_is_on_standard_output(
    log: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Another program can read it, also when files are written."""
    assert main(["analyze", str(log), "--json", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["num_batches"] == 40
    assert "overview.png" in captured.err


def test_out_writes_charts_and_summary_and_lists_them(
    log: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The folder is made, holds whole files only, and every one is listed."""
    out = tmp_path / "deep" / "report"
    assert main(["analyze", str(log), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    written = {path.name for path in out.iterdir()}
    assert written == CHARTS | {"summary.json"}
    for name in written:
        assert str(out / name) in printed
    for name in CHARTS:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "summary.json").read_text())["num_batches"] == 40


def test_a_file_that_fails_leaves_what_was_there(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report is replaced by a whole one or not at all."""
    out = tmp_path / "report"
    assert main(["analyze", str(log), "--out", str(out)]) == 0
    before = (out / "overview.png").read_bytes()

    def half_save(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half_save)
    assert main(["analyze", str(log), "--out", str(out)]) == 130
    assert (out / "overview.png").read_bytes() == before
    assert {path.name for path in out.iterdir()} == CHARTS | {"summary.json"}


def test_a_folder_that_cannot_be_written_is_an_error(
    log: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The message names it and the option."""
    (tmp_path / "file").touch()
    assert main(["analyze", str(log), "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"sched-profiler: cannot write {tmp_path / 'file'}: File exists; name another --out\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        *([name, "{long}"] for name in ("analyze", "slow", "verify", "validate", "upload")),
        ["top", "--once", "{long}"],
        ["compare", "{long}", "{log}"],
        ["report", "{log}", "-o", "{long}"],
        ["trace", "{log}", "-o", "{long}"],
        ["convert", "{log}", "{long}.parquet"],
        ["analyze", "{log}", "--out", "{long}"],
    ],
    ids=" ".join,
)
def test_a_name_that_no_file_can_have_is_an_error(
    log: Path, capsys: Capture, arguments: list[str]
) -> None:
    """The system says so wherever it is asked first, and no traceback follows."""
    told = failure(capsys, *(a.format(log=log, long="x" * 300) for a in arguments))
    assert "File name too long" in told


def test_a_folder_that_may_not_be_listed_is_not_passed_over(
    log: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it would be missing, and nobody would know."""
    closed = log.parent / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    told = failure(capsys, "verify", log.parent)
    assert f"{closed} cannot be listed: Permission denied" in told


@pytest.mark.parametrize("output", [".", "/", ""])
@pytest.mark.parametrize("command", ["report", "trace"])
def test_a_folder_without_a_name_is_no_file_to_write_to(
    log: Path, capsys: Capture, command: str, output: str
) -> None:
    """It is said before anything is read."""
    told = failure(capsys, command, log, "-o", output)
    assert "is a folder; name a file to write to" in told


def test_a_missing_log_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    """The message names the file and where to look."""
    message = failure(capsys, "analyze", tmp_path / "nowhere.jsonl")
    assert "nowhere.jsonl: no such file" in message
    assert "VLLM_SCHEDULER_PROFILING_LOG" in message


def test_an_empty_log_is_an_error_with_three_things_to_check(
    tmp_path: Path, capsys: Capture
) -> None:
    """Variables, permission, and whether there was anything to record."""
    log = tmp_path / "run.jsonl"
    log.touch()
    message = failure(capsys, "analyze", log)
    for hint in ("VLLM_ENABLE_SCHEDULER_PROFILING", "may write to the folder", "was scheduled"):
        assert hint in message


def test_a_half_written_last_line_is_tolerated_and_counted(log: Path, capsys: Capture) -> None:
    """An engine that is still running, or was killed, leaves one."""
    os.truncate(log, log.stat().st_size - 20)
    assert main(["analyze", str(log)]) == 0
    assert capsys.readouterr().out.startswith("39 batches")
    assert main(["analyze", "--json", str(log)]) == 0
    assert json.loads(capsys.readouterr().out)["num_half_written_lines"] == 1


def test_a_broken_line_is_an_error_with_file_line_and_remedy(log: Path, capsys: Capture) -> None:
    """And with the remedy, the rest of the log is summed up."""
    log.write_bytes(log.read_bytes() + b'{"batch_id":40}\n' + encode(batch(41, run_id="5eed5eed")))
    message = failure(capsys, "analyze", log)
    assert f"line 41 of {log}: lacks timestamp" in message
    assert "--skip-invalid" in message
    assert main(["analyze", "--skip-invalid", str(log)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("41 batches")
    assert "invalid lines           1 left out" in printed


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path, capsys: Capture) -> None:
    """Skipping is not offered: the log is fine."""
    log = write_log(tmp_path / "run.jsonl", [batch(0, schema_version=2)])
    message = failure(capsys, "analyze", log)
    assert f"line 1 of {log}: schema_version 2 is newer than 1; upgrade sched-profiler" in message
    assert "--skip-invalid" not in message


@pytest.mark.parametrize("measured", [True, False])
def test_a_log_without_optional_fields_is_analyzed(
    tmp_path: Path, capsys: Capture, *, measured: bool
) -> None:
    """With the 17 fields, and with the 15 that a fork without model times has."""
    log = tmp_path / "seed.jsonl"
    lines = [json.dumps(seed_record(record, measured=measured)) for record in records(30)]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main(["analyze", str(log), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert ("model run, ms           not recorded" in printed) != measured
    assert (tmp_path / "out" / "overview.png").exists()


def test_version_is_printed(capsys: Capture) -> None:
    """As the package says."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sched-profiler {__version__}\n"


def test_help_has_examples(capsys: Capture) -> None:
    """Each with the command and what it does."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:\n  sched-profiler analyze scheduler_profiling.jsonl\n" in printed
    assert "exit codes:\n  0 done; 1 done, and something is amiss; 2 bad input; " in printed


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_is_in_the_help_and_has_examples_of_its_own(
    command: Command, capsys: Capture
) -> None:
    """One sentence in the list of all, and calls in its own help."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f" {command.name} {command.purpose} " in printed
    with pytest.raises(SystemExit, match="0"):
        main([command.name, "--help"])
    assert f"examples:\n  sched-profiler {command.name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["analyze"], ["paint", "x"], ["analyze", "x", "--no"]])
def test_wrong_arguments_are_2_as_well(arguments: list[str], capsys: Capture) -> None:
    """Argparse explains them."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_without_polars_the_error_says_what_to_install(log: Path) -> None:
    """The base install is for engines and has none."""
    code = (
        "import sys; sys.modules['polars'] = None\n"
        "from sched_profiler.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = run("-c", code, "analyze", log)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "sched-profiler: analyze needs polars, which is not installed; "
        'install it with: pip install ".[analysis]" in a checkout of sched_profiler\n'
    )


@pytest.mark.parametrize("module", ["sched_profiler.cli", "sched_profiler.reader"])
def test_nothing_of_the_analysis_is_loaded_before_it_is_needed(module: str) -> None:
    """Help must be quick, and engines have no pandas."""
    code = (
        f"import sys, {module}\n"
        "heavy = {'pandas', 'polars', 'numpy', 'pyarrow', 'matplotlib', 'vllm'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = run("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_a_reader_that_goes_away_is_no_traceback(log: Path) -> None:
    """As in `sched-profiler analyze LOG | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "sched_profiler", "analyze", str(log)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_is_no_traceback(
    log: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the command as a shell expects."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sched_profiler.analysis.stats.summarize", interrupt)
    assert main(["analyze", str(log)]) == 130
    assert capsys.readouterr() == ("", "")


def test_work_that_takes_long_shows_progress_on_a_terminal(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far it is, how fast, and how long it will take; all is taken away at the end."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    times = iter([0.0, 0.5, 2.0, 2.05, 4.0])
    with progress("reading", lambda: next(times)) as advance:
        assert advance is not None
        for done in (10, 20, 25, 3_000):
            advance(done * 1_000_000, 4_000_000_000)
    shown = capsys.readouterr().err.split("\r")
    assert shown == [
        "",
        "reading   0% [........................] 20 of 4,000 MB, 10 MB/s, 6:38 left",
        "reading  75% [##################......] 3,000 of 4,000 MB, 750 MB/s, 0:01 left",
        " " * len(shown[2]),
        "",
    ]


@pytest.mark.parametrize("command", ["verify", "validate"])
def test_commands_that_read_whole_logs_show_progress(
    log: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """As if reading this log took long."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sched_profiler.cli.progress._SILENT_S", 0)
    monkeypatch.setattr("sched_profiler.cli.progress._PAUSE_S", 0)
    assert main([command, str(log)]) == 0
    shown = capsys.readouterr().err.split("\r")
    assert re.match(r"(read|validat)ing 100% \[#{24}\] ", shown[1])
    assert shown[-2:] == [" " * len(shown[1]), ""]


def test_quick_work_and_work_without_a_terminal_show_nothing(
    log: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log file of a job is no place for a bar."""
    with progress("reading") as advance:
        assert advance is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["analyze", str(log)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("start", [["-m", "sched_profiler"], [EXAMPLE]])
def test_other_ways_to_start_it_do_the_same(log: Path, start: list[str]) -> None:
    """The module, and the script that users of the original feature know."""
    done = run(*start, "analyze", log)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("40 batches")


def test_the_example_names_itself_in_errors(tmp_path: Path) -> None:
    """Not a command that the user did not type."""
    done = run(EXAMPLE, "analyze", tmp_path / "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("scheduler_profiling_example.py: ")


def test_validate_prints_violations_and_counts(log: Path, capsys: Capture) -> None:
    """0 where there is none; 1 and every violation with its place, up to the limit."""
    assert main(["validate", str(log)]) == 0
    assert capsys.readouterr().out == "40 records, 0 of them invalid; 0 violations\n"
    with log.open("ab") as stream:
        stream.write(b'{"batch_id":40}\n' + encode(batch(41)))
    assert main(["validate", "--limit", "1", str(log)]) == 1
    assert capsys.readouterr().out == (
        f"{log}:41: $: 'timestamp' is a required property\n"
        "42 records, 1 of them invalid; 14 violations; the first is shown\n"
    )
    assert main(["validate", "--json", str(log)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["num_violations"] == len(report["violations"]) == 14
    assert report["violations"][0] == {
        "log": str(log),
        "line": 41,
        "path": "$",
        "reason": "'timestamp' is a required property",
    }


def test_what_cannot_be_validated_is_2(tmp_path: Path, capsys: Capture) -> None:
    """A missing log and an empty one."""
    assert "no such file" in failure(capsys, "validate", tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert "no record in" in failure(capsys, "validate", tmp_path / "empty.jsonl")


def test_violations_are_printed_so_that_a_terminal_takes_them(
    tmp_path: Path, capsys: Capture
) -> None:
    """A log is somebody's input: it moves no cursor, and half a character is no traceback."""
    log = tmp_path / "run.jsonl"
    line = encode(batch(0)).replace(b'"run_id":"run"', b'"dp_rank":"\\u001b[2J\\ud800"')
    log.write_bytes(line)
    assert main(["validate", str(log)]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "is not of type 'integer', 'null'" in printed


@pytest.mark.parametrize("module", ["jsonschema", "msgspec"])
def test_without_the_extra_validate_says_what_to_install(log: Path, module: str) -> None:
    """The base install has neither."""
    code = (
        f"import sys; sys.modules['{module}'] = None\n"
        "from sched_profiler.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = run("-c", code, "validate", log)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"sched-profiler: validate needs {module}, which is not installed; "
        'install it with: pip install ".[validate]" in a checkout of sched_profiler\n'
    )


def test_slow_shows_the_slow_batches(tmp_path: Path, capsys: Capture) -> None:
    """What they held, who was in them, and what is usual."""
    log = write_log(
        tmp_path / "run.jsonl",
        [
            *(batch(number, decode=[1] * 9) for number in range(50)),
            batch(50, decode=[1] * 9, schedule_ms=12.5, request_ids=list("abcdefghi")),
            batch(51, prefill=[64] * 9, schedule_ms=11),
        ],
    )
    assert main(["slow", str(log), "--schedule-over", "10ms"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.splitlines()[0] == "batch 50 of run 0, at 0.500 s, over the limit in schedule"
    assert "0 prefill (0 tokens), 9 decode (9 tokens); 9 running, 0 waiting" in first
    assert "  who     a, b, c, d, e, f, g, h, ..." in first
    assert "schedule 12.5 (usual 1, z +575)" in first
    assert "9 prefill (576 tokens: 64, 64, 64, 64, 64, 64, 64, 64, ...)" in second
    assert second.endswith("  nothing to compare with: no other of its run holds about the same\n")


def test_slow_as_data_and_with_nothing_slow(log: Path, capsys: Capture) -> None:
    """Nothing slow is said, or is an empty list."""
    assert main(["slow", str(log), "--total-over", "9s"]) == 0
    assert capsys.readouterr().out == "none of 40 batches is over a limit\n"
    assert main(["slow", str(log), "--total-over", "9s", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["slow", str(log), "--model-over", "1us", "--top", "3", "--json"]) == 0
    assert [one["over"] for one in json.loads(capsys.readouterr().out)] == [["model run"]] * 3


@pytest.mark.parametrize("time", ["10 m", "fast", "-1ms", "nan"])
def test_slow_takes_durations_only(log: Path, capsys: Capture, time: str) -> None:
    """The message says what they look like."""
    with pytest.raises(SystemExit) as end:
        main(["slow", str(log), f"--schedule-over={time}"])
    assert end.value.code == 2
    assert "is no duration; expected a number with us, ms or s" in capsys.readouterr().err


def test_compare_names_sides_by_what_differs(tmp_path: Path, capsys: Capture) -> None:
    """A table for each, and with --out a picture and the data."""
    logs = []
    for number, budget in enumerate((256, 2048)):
        folder = tmp_path / str(number)
        folder.mkdir()
        engine = SimulatedEngine(run_id=f"r{number}", setup=Setup(token_budget=budget))
        logs.append(str(write_log(folder / "run.jsonl", engine.run(300))))
        write_manifest(folder / "run.run.json", engine.manifest())
    out = tmp_path / "out"
    assert main(["compare", *logs, "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert [side["label"] for side in json.loads(printed.out)["sides"]] == [
        "max_num_batched_tokens=256",
        "max_num_batched_tokens=2048",
    ]
    assert printed.err.count("wrote ") == 2
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "compare.json").read_text()) == json.loads(printed.out)
    assert main(["compare", logs[0], logs[0], "--confidence", "0.9"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split()[0].endswith("run.jsonl")
    assert "90% interval" in printed.out
    (tmp_path / "file").touch()
    assert "name another --out" in failure(capsys, "compare", *logs, "--out", tmp_path / "file")


@pytest.mark.parametrize("confidence", ["0", "1", "95", "much"])
def test_compare_takes_a_confidence_below_one(log: Path, confidence: str) -> None:
    """Anything else is a mistake."""
    with pytest.raises(SystemExit) as end:
        main(["compare", str(log), str(log), "--confidence", confidence])
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("compare", "A", "B", "--confidence", "much"),
            "much is no confidence; expected more than",
        ),
        (("slow", "A", "--top", "many"), "'many' cannot be; expected a whole number from 0 on"),
        (("slow", "A", "--top=-1"), "'-1' cannot be; expected a whole number from 0 on"),
        (("slow", "A", "--schedule-over", "long"), "'long' is no duration; expected a number with"),
        (
            ("tune", "A", "--max-num-seqs", "8,x"),
            "8,x is no list of limits; expected whole numbers",
        ),
        (("capacity", "A", "--requests", "1"), "1 is no number of requests; expected 2 or more"),
    ],
)
def test_an_option_says_what_values_it_takes(
    arguments: tuple[str, ...], message: str, capsys: Capture
) -> None:
    """Nobody has to guess from the name of a function."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_single_batch_is_not_compared(tmp_path: Path, capsys: Capture) -> None:
    """There is no spread to tell a difference by; two batches have one."""
    one = write_log(tmp_path / "one.jsonl", records(1))
    two = write_log(tmp_path / "two.jsonl", records(2))
    assert "one.jsonl has a single batch" in failure(capsys, "compare", two, one)
    assert main(["compare", str(two), str(two)]) == 0


def test_a_log_too_short_for_a_fit_is_an_error(log: Path, capsys: Capture) -> None:
    """The message says how many batches it takes, and what to do."""
    assert "a fit needs 100: record for longer" in failure(capsys, "fit", log)


def test_fit_prints_a_model_and_writes_it(tmp_path: Path, capsys: Capture) -> None:
    """With the settings of the engine, and a picture."""
    engine = SimulatedEngine(setup=Setup(max_num_seqs=8))
    log = write_log(tmp_path / "run.jsonl", engine.run(400))
    write_manifest(tmp_path / "run.run.json", engine.manifest())
    assert main(["fit", str(log)]) == 0
    assert capsys.readouterr().out.startswith("model run of 390 batches\n\nterm ")
    out = tmp_path / "out"
    assert main(["fit", str(log), "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["settings"]["max_num_seqs"] == 8
    assert printed.err.count("wrote ") == 2
    assert json.loads((out / "step_time_model.json").read_text()) == json.loads(printed.out)
    assert (out / "step_time_model.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").touch()
    assert "name another --out" in failure(capsys, "fit", log, "--out", tmp_path / "file")


def test_fit_needs_batches(log: Path, capsys: Capture) -> None:
    """The message says how many there are."""
    assert "30 batches have a model_run_duration_ms" in failure(capsys, "fit", log)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_trace_writes_a_timeline(log: Path, tmp_path: Path, capsys: Capture, name: str) -> None:
    """Whole, and compressed where the name says so."""
    out = tmp_path / name
    assert main(["trace", str(log), "-o", str(out)]) == 0
    assert f"events of 40 batches to {out}" in capsys.readouterr().out
    data = out.read_bytes()
    text = gzip.decompress(data) if name.endswith(".gz") else data
    assert sum(event["name"] == "schedule" for event in json.loads(text)["traceEvents"]) == 40
    (tmp_path / "folder").mkdir()
    assert "name another --output" in failure(capsys, "trace", log, "-o", tmp_path / "folder")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_report_writes_a_page(log: Path, tmp_path: Path, capsys: Capture) -> None:
    """Under its name only when it is whole, and with what its maker calls it."""
    page = tmp_path / "report.html"
    assert main(["report", str(log), "-o", str(page), "--title", "Tuesday"]) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(
        rf"wrote {page}, \d\.\d MB about 40 batches\nopen it in a browser; it needs no network\n",
        printed.out,
    )
    assert printed.err == ""
    text = page.read_text(encoding="utf-8")
    assert "<h1>Tuesday</h1>" in text
    assert text.endswith("</html>")
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(log.read_bytes() + b"nonsense\n")
    assert "broken.jsonl" in failure(capsys, "report", broken, "-o", page)
    assert "no record in" in failure(capsys, "report", os.devnull, "-o", page)
    (tmp_path / "folder").mkdir()
    assert "name another --output" in failure(capsys, "report", log, "-o", tmp_path / "folder")
    assert page.read_text(encoding="utf-8") == text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_report_of_a_log_that_does_not_fit_into_memory(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not loaded, and the page says what it lacks."""
    monkeypatch.setattr("sched_profiler.cli.report._MOST_BATCHES", 39)
    assert main(["report", str(log), "-o", str(tmp_path / "report.html")]) == 0
    assert "too long to look for slow batches" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("module", ["plotly", "jinja2"])
def test_without_the_extra_report_says_what_to_install(
    log: Path, tmp_path: Path, module: str
) -> None:
    """And writes nothing."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from sched_profiler.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = run("-c", code, "report", log, "-o", tmp_path / "report.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sched-profiler: report needs {module}")
    assert done.stderr.endswith(
        'install it with: pip install ".[report]" in a checkout of sched_profiler\n'
    )
    assert not (tmp_path / "report.html").exists()


HOSTILE = "<script>alert(1)</script>\x1b[2J\x1b]0;x\x07\n\u202eclean\u2028<b>"


def test_whatever_is_in_a_log_is_inert_in_what_is_printed(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fields, manifests, names of files and settings: nothing moves a cursor or adds a line."""
    log = tmp_path / f"{HOSTILE.replace('/', '|')}.jsonl"
    fields = {"run_id": HOSTILE, "request_ids": [HOSTILE, HOSTILE]}
    log.write_bytes(encode(batch(1, **fields)) + encode(batch(3, **fields)))
    run = Run(HOSTILE, dp_rank=None, facts={"model": HOSTILE}, num_dropped=lambda: 0)
    manifest = run.manifest(log=log.name, started=1.0, updated=2.0)
    write_manifest(log.with_suffix(".run.json"), manifest)
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(encode(batch(0)).replace(b'"dp_rank":', b'"dp_rank":"\\u001b[2J<b>","x":'))
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", HOSTILE)
    monkeypatch.setenv("VLLM_SCHEDULER_PROFILING_LOG", str(log))
    for arguments in (
        ("analyze", log),
        ("verify", log),
        ("verify", tmp_path, "--skip-invalid"),
        ("validate", log, broken),
        ("analyze", broken),
        ("verify", tmp_path / HOSTILE),
        ("upload", tmp_path),
        ("doctor",),
        *((command, log, "--json") for command in ("analyze", "verify", "validate")),
        ("doctor", "--json"),
    ):
        main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        for text in (printed.out, printed.err):
            assert all(line.isprintable() for line in text.split("\n")), arguments
            assert not [line for line in text.split("\n") if line.startswith("clean")]
