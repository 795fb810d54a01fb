"""However a process ends, what was measured is written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# 300 batches, the last one still in flight, and no call of close().
ENGINE = """
import sys, multiprocessing, os, signal, threading, time
from sched_profiler import BatchProfiler, JsonlSink

def serve(log, **options):
    profiler = BatchProfiler(JsonlSink(log), **options) if isinstance(log, str) else log
    for number in range(300):
        batch = profiler.begin()
        batch.scheduled(prefill_chunk_sizes=[], decode_chunk_sizes=[1], num_waiting_reqs=0,
                        num_running_reqs=1, kv_cache_usage=0.0)
        if number < 299:
            batch.finished()

def killed_soon(*_):
    threading.Thread(target=kill, daemon=True).start()

def kill():
    # As soon as most is there; a machine that is busy may take long to come to it.
    until = time.monotonic() + 10
    while time.monotonic() < until and number_of_lines() < 299:
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)

def number_of_lines():
    return os.path.exists(sys.argv[1]) and open(sys.argv[1], "rb").read().count(b"\\n")

if __name__ == "__main__":
    # Whoever starts the tests in the background makes their children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    {end}
"""


# As under vllm serve, only that there is more time for a slow machine. On its own the writer would
# sleep through all of it, so that what is in the file is there because of the signal.
ASLEEP = "import sched_profiler.writer as w; w._POLL_S = 60;"


def run(end: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the engine above until `end`."""
    script = folder / "engine.py"
    script.write_text(ENGINE.replace("{end}", end))
    return subprocess.run(
        [sys.executable, str(script), str(folder / "log.jsonl")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("serve(sys.argv[1])", 0),
        ("serve(sys.argv[1]); sys.exit(3)", 3),
        ("serve(sys.argv[1]); raise RuntimeError('engine')", 1),
        ("serve(sys.argv[1]); os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", -15),
        ("serve(sys.argv[1]); os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -2),
        (
            "c = multiprocessing.get_context('spawn').Process(target=serve, args=sys.argv[1:]);"
            " c.start(); c.join()",
            0,
        ),
        (
            "c = multiprocessing.get_context('fork').Process(target=serve, args=sys.argv[1:]);"
            " c.start(); c.join()",
            0,
        ),
    ],
    ids=["exit", "exit code", "exception", "SIGTERM", "SIGINT", "spawned child", "forked child"],
)
def test_nothing_is_lost_however_the_process_ends(end: str, code: int, tmp_path: Path) -> None:
    """All 300 batches are in the file, the one in flight too, and the exit code is as ever."""
    done = run(end, tmp_path)
    assert done.returncode == code, done.stderr
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 300
    assert '"model_run_duration_ms":null' in lines[-1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_the_close_loses_nothing(
    signum: signal.Signals, tmp_path: Path
) -> None:
    """A second Ctrl-C, or a server that is asked to end while it does: what was put is written."""
    slow = "write = JsonlSink.write; JsonlSink.write = lambda *a: (time.sleep(0.005), write(*a))"
    done = run(
        f"{slow}; p = BatchProfiler(JsonlSink(sys.argv[1])); serve(p);"
        f" threading.Timer(0.5, os.kill, (os.getpid(), {int(signum)})).start(); p.close();"
        " print('not interrupted')",
        tmp_path,
    )
    assert done.returncode == -signum, done.stderr
    assert done.stdout == ""
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 300
    (manifest,) = tmp_path.glob("*.run.json")
    assert json.loads(manifest.read_bytes())["clean_end"] is True


def test_a_forked_process_that_ends_leaves_all_to_its_parent(tmp_path: Path) -> None:
    """It neither writes what waits in the parent, nor says that it is lost."""
    done = run(
        f"{ASLEEP} serve(sys.argv[1]); child = os.fork(); child or sys.exit(0);"
        " os.waitpid(child, 0)",
        tmp_path,
    )
    assert done.returncode == 0
    # Python 3.12 warns of the fork.
    assert "no record" not in done.stderr
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 300


def test_a_handler_of_sigterm_that_is_there_still_decides(tmp_path: Path) -> None:
    """It is called as ever; the engine may go on, and what it then does is recorded too."""
    done = run(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); serve(sys.argv[1]);"
        " os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
        tmp_path,
    )
    assert done.returncode == 7
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 300


def test_a_sigkill_loses_the_last_moment_only(tmp_path: Path) -> None:
    """What the writer had not taken yet; the rest is there, without a gap."""
    script = tmp_path / "engine.py"
    steps = "p = BatchProfiler(JsonlSink(sys.argv[1]))\n    while True: serve(p); time.sleep(0.005)"
    script.write_text(ENGINE.replace("range(300)", "range(1)").replace("{end}", steps))
    log = tmp_path / "log.jsonl"
    engine = subprocess.Popen([sys.executable, str(script), str(log)])
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_bytes().count(b"\n") < 100:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.15)
    killed = time.time()
    engine.kill()
    engine.wait()
    records = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [record["batch_id"] for record in records] == list(range(len(records)))
    assert killed - records[-1]["timestamp"] < 1


def test_what_was_finished_at_sigterm_survives_a_sigkill_right_after_it(tmp_path: Path) -> None:
    """vLLM's server kills its engine core in the moment in which it asks it to end."""
    done = run(
        f"{ASLEEP} signal.signal(signal.SIGTERM, killed_soon); serve(sys.argv[1]);"
        " os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 299


def test_what_was_finished_at_sigterm_survives_a_sigkill_in_the_middle_of_a_step(
    tmp_path: Path,
) -> None:
    """A model runs in native code, and Python calls no handler until it is through."""
    done = run(
        f"{ASLEEP} import hashlib; signal.signal(signal.SIGTERM, lambda *_: None);"
        " serve(sys.argv[1]);"
        " threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start();"
        " threading.Timer(3, os.kill, (os.getpid(), signal.SIGKILL)).start();"
        " hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)",
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 299


def test_somebody_who_listens_to_signals_goes_on_doing_so(tmp_path: Path) -> None:
    """As event loops do; we then hear of them a little later."""
    done = run(
        "here, there = os.pipe(); os.set_blocking(there, False); signal.set_wakeup_fd(there);"
        " signal.signal(signal.SIGTERM, lambda *_: None); serve(sys.argv[1]);"
        " os.kill(os.getpid(), signal.SIGTERM); print(os.read(here, 9))",
        tmp_path,
    )
    assert done.stdout == f"{bytes([signal.SIGTERM])!r}\n"
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 300


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_an_engine_that_ends_at_a_signal_is_closed_by_it(signal_name: str, tmp_path: Path) -> None:
    """The batch in flight is in the log as well, and a second signal finds nothing to do."""
    done = run(
        f"{ASLEEP} signal.signal(signal.{signal_name}, killed_soon);"
        f" serve(sys.argv[1], ends_at_signal=True); os.kill(os.getpid(), signal.{signal_name});"
        " time.sleep(9)",
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 300
    assert '"model_run_duration_ms":null' in lines[-1]


def test_an_engine_on_a_thread_of_its_own_loses_nothing_at_sigterm(tmp_path: Path) -> None:
    """Its thread cannot hook signals; the thread that made the profiler could."""
    done = run(
        "p = BatchProfiler(JsonlSink(sys.argv[1]));"
        " t = threading.Thread(target=serve, args=(p,)); t.start(); t.join();"
        " os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
        tmp_path,
    )
    assert done.returncode == -signal.SIGTERM
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 300


def test_an_engine_that_goes_on_after_a_signal_goes_on_being_profiled(tmp_path: Path) -> None:
    """A handler of somebody's that does not end the process is no end of the profile."""
    done = run(
        "signal.signal(signal.SIGTERM, lambda *_: None);"
        " p = BatchProfiler(JsonlSink(sys.argv[1])); serve(p);"
        " os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.05); serve(p)",
        tmp_path,
    )
    assert done.returncode == 0
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 600


def test_a_failure_of_ours_in_a_signal_handler_stays_ours(tmp_path: Path) -> None:
    """Their handler runs, and the engine does not see our exception."""
    done = run(
        "signal.signal(signal.SIGTERM, lambda *_: print('theirs', flush=True));"
        " p = BatchProfiler(JsonlSink(sys.argv[1]), ends_at_signal=True);"
        " p.before_close = lambda: 1 / 0; serve(p); os.kill(os.getpid(), signal.SIGTERM);"
        " p.before_close = None; print('goes on')",
        tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout.split("\n")[:2] == ["theirs", "goes on"]
    assert "ZeroDivisionError" in done.stderr


def test_sigterm_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """Nobody asked us to end the process."""
    done = run(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); serve(sys.argv[1]);"
        " os.kill(os.getpid(), signal.SIGTERM); sys.exit(5)",
        tmp_path,
    )
    assert done.returncode == 5
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 300


def test_a_log_in_parts_is_whole_although_its_process_ends_at_once(tmp_path: Path) -> None:
    """The thread for its parts cannot be started any more where Python does not do that."""
    done = run(
        "from sched_profiler import Rotation;"
        " sink = JsonlSink(sys.argv[1], rotation=Rotation(part_bytes=1 << 15));"
        " serve(BatchProfiler(sink))",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    parts = [*tmp_path.glob("log.*.jsonl")]
    assert len(parts) > 1
    assert sum(len(part.read_text().splitlines()) for part in parts) == 300


def test_sigterm_before_any_batch_kills_as_ever(tmp_path: Path) -> None:
    """No hook is set before there is something to lose."""
    done = run("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", tmp_path)
    assert done.returncode == -signal.SIGTERM
    assert not (tmp_path / "log.jsonl").exists()
