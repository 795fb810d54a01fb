"""The doctor names the reason why a log is empty, and no secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_under_test import serve

from sched_profiler import (
    BatchProfiler,
    BatchRecord,
    JsonlSink,
    MemorySink,
    TeeSink,
    UploadError,
)
from sched_profiler.cli import main
from sched_profiler.doctor import Finding, Surroundings, examine
from sched_profiler.engines.vllm_binding import NEWEST_TESTED
from sched_profiler.store import Store

Capture = pytest.CaptureFixture[str]

ON = {"VLLM_ENABLE_SCHEDULER_PROFILING": "true"}


@pytest.fixture(autouse=True)
def _tested_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tested vLLM be there, whichever there is."""
    version = ".".join(map(str, NEWEST_TESTED)) + ".0"
    monkeypatch.setattr("sched_profiler.doctor._vllm_version", lambda: version)


def found(folder: Path, **environ: str) -> list[Finding]:
    """Return what is no "ok" where an engine with these variables is started in `folder`."""
    findings = list(examine(Surroundings(ON | environ, folder)))
    assert len(findings) >= 3
    assert all((finding.remedy is None) == (finding.status == "ok") for finding in findings)
    return [finding for finding in findings if finding.status != "ok"]


def problem(folder: Path, **environ: str) -> Finding:
    """Return the one thing that is wrong."""
    (finding,) = found(folder, **environ)
    assert finding.status == "problem"
    return finding


def warning(folder: Path, **environ: str) -> Finding:
    """Return the one thing that may surprise."""
    (finding,) = found(folder, **environ)
    assert finding.status == "warning"
    return finding


def test_where_all_is_well_nothing_is_found(tmp_path: Path) -> None:
    """Also with every sink that needs nothing else."""
    assert found(tmp_path) == []
    environ = {"SCHED_PROFILER_SINKS": "jsonl,console,otel"}
    assert found(tmp_path, **environ) == []


def test_profiling_that_is_not_asked_for_is_a_problem(tmp_path: Path) -> None:
    """The usual reason: the server does not see the variable."""
    finding = problem(tmp_path, VLLM_ENABLE_SCHEDULER_PROFILING="")
    assert finding.subject == "VLLM_ENABLE_SCHEDULER_PROFILING"
    assert "export VLLM_ENABLE_SCHEDULER_PROFILING=true" in (finding.remedy or "")


def test_a_wrong_value_is_a_problem_that_names_it(tmp_path: Path) -> None:
    """In the words in which vLLM's log would say it."""
    finding = problem(tmp_path, VLLM_ENABLE_SCHEDULER_PROFILING="yes")
    assert "VLLM_ENABLE_SCHEDULER_PROFILING='yes' is neither true nor false" in finding.text
    place = Surroundings({"VLLM_ENABLE_SCHEDULER_PROFILING": "yes"}, tmp_path)
    assert not [one for one in examine(place) if one.subject == "VLLM_ENABLE_SCHEDULER_PROFILING"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SCHED_PROFILER_CONSOL", "SCHED_PROFILER_CONSOLE_EVERY"),
        ("VLLM_SCHEDULER_PROFILING", "VLLM_ENABLE_SCHEDULER_PROFILING"),
        ("VLLM_SCHEDULER_PROFILING_LOGS", "perhaps VLLM_SCHEDULER_PROFILING_LOG "),
        ("VLLM_ENABLE_SCHEDULER_PROFILNG", "perhaps VLLM_ENABLE_SCHEDULER_PROFILING is meant"),
        ("SCHED_PROFILER_COLOUR", "settings are VLLM_ENABLE_SCHEDULER_PROFILING, VLLM_"),
    ],
)
def test_a_misspelled_setting_is_a_warning(tmp_path: Path, name: str, meant: str) -> None:
    """It has no effect; what may be meant is named, and its value is not shown."""
    finding = warning(tmp_path, **{name: "s3cret"})
    assert finding.subject == name
    assert meant in (finding.remedy or "")
    assert "s3cret" not in f"{finding}{finding.remedy}"


@pytest.mark.parametrize("plugins", ["", "lora", "a,b"])
def test_vllm_plugins_may_exclude_us(tmp_path: Path, plugins: str) -> None:
    """Then vLLM never calls us."""
    assert problem(tmp_path, VLLM_PLUGINS=plugins).text == "VLLM_PLUGINS excludes sched_profiler"
    assert found(tmp_path, VLLM_PLUGINS=f"{plugins},sched_profiler") == []


def test_a_plug_in_that_vllm_does_not_find_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy on PYTHONPATH, or another environment."""
    monkeypatch.setattr("sched_profiler.doctor.entry_points", lambda group: [])
    assert "does not find sched-profiler" in problem(tmp_path).text


def test_another_python_without_vllm_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor must be run where the server runs."""
    monkeypatch.setattr("sched_profiler.doctor._vllm_version", lambda: None)
    finding = problem(tmp_path)
    assert sys.prefix in finding.text
    assert "run this command with the Python that runs vLLM" in (finding.remedy or "")


def test_an_untested_vllm_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works unless a name is missing, which vLLM's log tells."""
    monkeypatch.setattr("sched_profiler.doctor._vllm_version", lambda: "0.99.1")
    assert "0.99.1 was not tested" in warning(tmp_path).text


@pytest.mark.vllm
def test_the_vllm_that_is_there_is_found_without_importing_it() -> None:
    """Nor is torch: that takes seconds, and memory on the machine of a server."""
    code = (
        "import sys\n"
        "from sched_profiler import doctor\n"
        "print(doctor._vllm_version())\n"
        "list(doctor.examine(doctor.surroundings()))\n"
        "print(*sorted({'vllm', 'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | ON | {"SCHED_PROFILER_SINKS": "jsonl,console,otel,prometheus"},
        capture_output=True,
        text=True,
        check=True,
    )
    version, loaded = done.stdout.splitlines()
    assert version[0].isdigit()
    assert loaded == ""


def test_an_unknown_sink_is_a_problem(tmp_path: Path) -> None:
    """Profiling is off then."""
    finding = problem(tmp_path, SCHED_PROFILER_SINKS="jsonl,prometeus")
    assert "'prometeus', which is no sink; known are" in finding.text


def test_a_missing_extra_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other sinks work without it."""
    monkeypatch.setattr("sched_profiler.doctor._is_installed", lambda module: False)
    finding = warning(tmp_path, SCHED_PROFILER_SINKS="jsonl,otel")
    assert finding.remedy == 'pip install ".[otel]" in a checkout of sched_profiler'


def test_metrics_that_nobody_can_read_are_a_warning(tmp_path: Path) -> None:
    """With a port or the folder of vLLM's own metrics somebody can; the folder must be there."""
    prometheus = {"SCHED_PROFILER_SINKS": "jsonl,prometheus"}
    assert "nobody can read" in warning(tmp_path, **prometheus).text
    assert found(tmp_path, **prometheus, SCHED_PROFILER_PROMETHEUS_PORT="9400") == []
    assert found(tmp_path, **prometheus, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == []
    missing = problem(tmp_path, **prometheus, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "no"))
    assert "PROMETHEUS_MULTIPROC_DIR is no folder" in missing.text


def test_a_log_that_cannot_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, below a file, or where one may not write."""
    log = "VLLM_SCHEDULER_PROFILING_LOG"
    (tmp_path / "file").touch()
    assert "is a folder" in problem(tmp_path, **{log: str(tmp_path)}).text
    assert "file is no folder" in problem(tmp_path, **{log: "file/run.jsonl"}).text
    assert found(tmp_path, **{log: "new/folders/run.jsonl"}) == []
    monkeypatch.setattr("os.access", lambda path, mode: False)
    finding = problem(tmp_path, **{log: "new/folders/run.jsonl"})
    assert finding.text == f"you may not write to {tmp_path}"
    assert "run this command as that user" in (finding.remedy or "")


@pytest.mark.parametrize(
    ("free", "status"), [(2 << 30, "ok"), (500 << 20, "warning"), (1 << 20, "problem")]
)
def test_a_full_disk_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, status: str
) -> None:
    """Soon it will be the reason."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    disk = [f for f in examine(Surroundings(ON, tmp_path)) if f.subject == "disk"]
    assert [finding.status for finding in disk] == [status]


STORE = "VLLM_SCHEDULER_PROFILING_LOG"


def test_a_store_is_tried_and_left_as_it_was(tmp_path: Path, memory: Any) -> None:
    """An object is written as the engine writes it, below the prefix that the log will have."""
    environ = {STORE: "memory://logs/{dp_rank}/", "SCHED_PROFILER_SPOOL": str(tmp_path)}
    findings = list(examine(Surroundings(ON | environ, tmp_path)))
    assert "ok       store: memory://logs/0/ takes what is uploaded" in map(str, findings)
    assert f"ok       spool: records wait in {tmp_path} until" in "".join(map(str, findings))
    assert memory.find("/logs") == []
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_asked_with_the_credentials_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it refuses is a problem, and its reason is told without them."""
    seen: list[str | None] = []

    def refuse(store: Store, file: Path, name: str) -> None:
        seen.append(os.environ.get("AWS_SECRET_ACCESS_KEY"))
        with store._errors(UploadError):
            raise PermissionError("refused s3cret-key")

    monkeypatch.setattr(Store, "put", refuse)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the operator's")
    environ = {STORE: "memory://logs/", "SCHED_PROFILER_SPOOL": str(tmp_path)}
    finding = problem(tmp_path, **environ, AWS_SECRET_ACCESS_KEY="s3cret-key")
    assert finding.text == "memory://logs/: PermissionError: refused ***"
    assert seen == ["s3cret-key"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "the operator's"


def test_a_store_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of storage try again for minutes."""
    monkeypatch.setattr("sched_profiler.doctor._ANSWER_S", 0.1)
    hangs = threading.Event()
    monkeypatch.setattr(Store, "put", lambda *_: hangs.wait(20))
    finding = problem(tmp_path, **{STORE: "memory://logs/", "SCHED_PROFILER_SPOOL": str(tmp_path)})
    hangs.set()
    assert "does not answer within" in finding.text


def test_a_spool_that_cannot_be_written_is_a_problem(tmp_path: Path, memory: Any) -> None:
    """It is a folder, or can be made."""
    spool = tmp_path / "spool"
    environ = {STORE: "memory://logs/", "SCHED_PROFILER_SPOOL": str(spool)}
    assert found(tmp_path, **environ) == []
    spool.touch()
    assert "is no folder" in problem(tmp_path, **environ).text
    environ["SCHED_PROFILER_SPOOL"] = str(spool / "below")
    assert f"{spool} is no folder, so" in problem(tmp_path, **environ).text


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://key:secret@bucket/", "names a bucket and no user"),
        ("nothing://bucket/", "no kind of URL that fsspec knows"),
    ],
)
def test_a_log_whose_sink_cannot_be_made_is_a_problem(tmp_path: Path, url: str, text: str) -> None:
    """In the words in which vLLM's log would say it."""
    assert text in problem(tmp_path, **{STORE: url}).text


def test_the_newest_manifest_tells_how_the_last_run_went(tmp_path: Path) -> None:
    """Batches without a record are a warning; what another sink lacks is said."""

    class Deaf(MemorySink):
        def write(self, record: BatchRecord) -> None:
            raise OSError("no answer")

    for number in range(2):
        log = JsonlSink(tmp_path / "scheduler_profiling.jsonl")
        profiler = BatchProfiler(TeeSink(log, Deaf()))
        serve(profiler, 5)
        if number:
            profiler.writer.drop()
        profiler.close()
        manifest = tmp_path / f"scheduler_profiling.{profiler.run_id}.run.json"
        os.utime(manifest, (number, number))
    finding = warning(tmp_path)
    assert finding.subject == "last run"
    assert f"{profiler.run_id}, process {os.getpid()}" in finding.text
    assert (
        "wrote 5 records and dropped 1; its end: clean; 5 records did not reach Deaf"
        in finding.text
    )
    manifest.write_text("no manifest")
    assert found(tmp_path) == []
    manifest.unlink()
    assert found(tmp_path) == []


def test_a_hidden_console_is_a_warning(tmp_path: Path) -> None:
    """Its lines are of level INFO."""
    environ = {"VLLM_SCHEDULER_PROFILING_CONSOLE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    assert "hides the lines" in warning(tmp_path, **environ).text


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_no_secret_is_printed(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """Neither from a URL nor from a variable that is not ours, whatever they look like."""
    secrets = ["s3cret-key", "s3c/ret@pass", "s3cret-token", "s3cret-env", "s3cret-other"]
    monkeypatch.chdir(tmp_path)
    url = f"s3://{secrets[0]}:{secrets[1]}@bucket/logs/run.jsonl?sig={secrets[2]}#{secrets[2]}"
    for name, value in {
        **ON,
        "VLLM_SCHEDULER_PROFILING_LOG": url,
        "AWS_SECRET_ACCESS_KEY": secrets[3],
        "HF_TOKEN": secrets[3],
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={secrets[3]}",
        "PROMETHEUS_MULTIPROC_DIR": f"/nowhere/{secrets[3]}",
        "SCHED_PROFILER_SHOP_TOKEN": secrets[4],
    }.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 1
    printed = "".join(capsys.readouterr())
    assert "s3://bucket/logs/run.jsonl" in printed
    assert "SCHED_PROFILER_SHOP_TOKEN" in printed
    for part in ("s3cret", "s3c/", "ret@pass", "sig="):
        assert part not in printed


def test_the_command_prints_status_finding_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """One line each, and 1 as soon as there is a problem."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", "true")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ok       VLLM_ENABLE_SCHEDULER_PROFILING: set to true\n")
    assert str(tmp_path / "scheduler_profiling.jsonl") in printed
    monkeypatch.setenv("VLLM_PLUGINS", "lora")
    assert main(["doctor"]) == 1
    assert (
        "problem  plug-in: VLLM_PLUGINS excludes sched_profiler\n"
        "         -> add sched_profiler to VLLM_PLUGINS, or unset it\n"
    ) in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"subject", "status", "text", "remedy"} == set(findings[0])
    assert [f["subject"] for f in findings if f["status"] == "problem"] == ["plug-in"]


@pytest.mark.parametrize(
    ("variable", "subject", "others"),
    [
        ("VLLM_SCHEDULER_PROFILING_LOG", "log", {}),
        ("SCHED_PROFILER_SPOOL", "spool", {"VLLM_SCHEDULER_PROFILING_LOG": "memory://doctor/"}),
    ],
)
def test_a_path_that_the_system_refuses_is_a_problem_not_an_end(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    variable: str,
    subject: str,
    others: dict[str, str],
) -> None:
    """Here a name that no file can have; a folder that may not be entered is refused likewise."""
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", "true")
    for name, value in (others | {variable: "x" * 300}).items():
        monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert re.search(rf"^problem  {subject}: .*x: File name too long$", printed, re.MULTILINE)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_the_environment_of_a_running_server_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A service does not see the variables of the operator's shell."""
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", "true")
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        env={"VLLM_SCHEDULER_PROFILING_LOG": "logs/of\nserver.jsonl"},
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert main(["doctor", "--pid", str(server.pid)]) == 1
        printed = capsys.readouterr().out
    assert "problem  VLLM_ENABLE_SCHEDULER_PROFILING: profiling is not asked for" in printed
    assert f"{tmp_path}/logs/of\\nserver.jsonl can be made" in printed
    assert main(["doctor", "--pid", "999999999"]) == 2
    assert "there is no process 999999999 here; give the number of" in capsys.readouterr().err
