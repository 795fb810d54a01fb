"""`sched-profiler top`, on a real terminal."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from machine import lacks
from rich.console import Console
from synthetic import batch, records, write_log
from terminal_under_test import Terminal

from sched_profiler import BatchRecord, JsonlSink, Rotation
from sched_profiler.cli import main
from sched_profiler.cli.top_screen import Status, frame
from sched_profiler.codec import encode
from sched_profiler.window import Window

Capture = pytest.CaptureFixture[str]

TOP = (sys.executable, "-m", "sched_profiler", "top")
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x1b[31mrun\u202e[bold red]"


def ended(seconds: float, number: int, **fields: object) -> Iterator[BatchRecord]:
    """Yield records of batches, the last of which ended so long ago."""
    found = list(records(number, **fields))  # type: ignore[arg-type]
    shift = time.time() - found[-1].timestamp - seconds
    for record in found:
        yield attrs.evolve(record, timestamp=record.timestamp + shift)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a log of 2,000 batches of two ranks, in this folder.

    It ended an hour ago: what is shown of it stays, however slow this machine is.
    """
    monkeypatch.chdir(tmp_path)
    ranks = [ended(3600, 1000, run_id=f"run{rank}", dp_rank=rank, seed=rank) for rank in (0, 1)]
    return write_log(Path("run.jsonl"), itertools.chain.from_iterable(zip(*ranks, strict=True)))


def failure(capsys: Capture, *arguments: object) -> str:
    """Run a command that must fail, and return the one line that says why."""
    assert main(["top", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_once_prints_one_frame(log: Path, capsys: Capture) -> None:
    """To be read by people and pipes: there is no control character in it."""
    assert main(["top", str(log), "--once"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"sched-profiler top  {log}\n")
    assert "1 run," not in printed
    assert "2 runs, 2 engines" in printed
    for title in ("steps/s", "prefill tokens/s", "total step ms", "KV cache", "slow batch"):
        assert f"\n{title} " in printed
    assert re.search(r"\nrun1 +1 ", printed)
    assert "\nlost: nothing\n" in printed
    assert all(character.isprintable() or character == "\n" for character in printed)


def test_the_window_can_be_chosen(log: Path, capsys: Capture) -> None:
    """With a unit, or in seconds."""
    for window in ("5s", "5", "5000ms"):
        assert main(["top", str(log), "--once", "--window", window]) == 0
        assert "\nlast 5.0 s: " in capsys.readouterr().out
    for window in ("1s", "soon", "-3s"):
        with pytest.raises(SystemExit, match="2"):
            main(["top", str(log), "--once", f"--window={window}"])
    assert "'soon' is no duration" in capsys.readouterr().err


def test_once_needs_a_record(tmp_path: Path, capsys: Capture) -> None:
    """A log that is not there, empty, or damaged is an error, which says so."""
    missing = tmp_path / "missing.jsonl"
    message = failure(capsys, missing, "--once")
    assert f"{missing} does not exist yet" in message
    assert "name another log, or leave --once out" in message
    empty = write_log(tmp_path / "empty.jsonl", [])
    assert "it is empty" in failure(capsys, empty, "--once")
    empty.write_bytes(b"{}\n")
    assert "lacks batch_id" in failure(capsys, empty, "--once")


def test_it_does_not_draw_into_a_file(log: Path, capsys: Capture) -> None:
    """What to do instead is said."""
    assert "--once prints one frame" in failure(capsys, log)


def test_without_its_package_it_says_how_to_install_it(
    log: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base install does without it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    error = failure(capsys, log, "--once")
    assert 'pip install ".[top]"' in error


def test_it_waits_for_a_log_and_shows_what_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First there is no log, then a run, then another one; q ends it."""
    monkeypatch.chdir(tmp_path)
    log = Path("run.jsonl")
    with Terminal([*TOP, str(log), "--window=30min"]) as terminal:
        terminal.wait_for_text("waiting for the first record", "does not exist yet", "q quits")
        log.write_bytes(b"".join(map(encode, ended(0.1, 300, run_id="first")))[:-100])
        terminal.wait_for_text("1 run, 1 engine", "first")
        with log.open("ab") as stream:
            stream.write(b"\n")
            stream.writelines(map(encode, ended(0.1, 50, run_id="second")))
        shown = terminal.wait_for_text("2 runs, 2 engines", "second", "1 line left out")
        assert "first" in shown
        terminal.type("q")
        assert terminal.wait() == 0
        assert terminal.attributes == terminal.before
    # It leaves the screen as it was, with a cursor.
    assert terminal.printed.rpartition(b"\x1b[?1049h")[2].count(b"\x1b[?1049l") == 1
    assert terminal.printed.rfind(b"\x1b[?25h") > terminal.printed.rfind(b"\x1b[?25l")


def test_it_draws_as_often_as_it_is_told(tmp_path: Path, capsys: Capture) -> None:
    """In an interval of hours only the first frame is seen; a key is answered at once."""
    log = tmp_path / "run.jsonl"
    with Terminal([*TOP, str(log), "--interval=600min"]) as terminal:
        terminal.wait_for_text("waiting for the first record")
        log.write_bytes(b"".join(map(encode, ended(0.1, 300, run_id="first"))))
        time.sleep(2)  # by default there would be many more frames by now
        terminal.type("q")
        assert terminal.wait() == 0
        assert b"slow batch" not in terminal.printed
    with pytest.raises(SystemExit, match="2"):
        main(["top", str(log), "--interval=1ms"])
    assert "'1ms' is too short; at least 0.02 s" in capsys.readouterr().err


def test_ctrl_c_and_signals_end_it_as_well(log: Path) -> None:
    """And leave the terminal as it was."""
    for end, code in (("\x03", 0), (signal.SIGTERM, 128 + signal.SIGTERM)):
        with Terminal([*TOP, str(log)]) as terminal:
            terminal.wait_for_text("slow batch")
            if isinstance(end, str):
                terminal.type(end)
            else:
                terminal.send_signal(end)
            assert terminal.wait() == code
            assert terminal.attributes == terminal.before
            assert b"\x1b[?1049l" in terminal.printed
            assert b"Traceback" not in terminal.printed


def test_it_fits_the_terminal_also_when_that_changes(log: Path) -> None:
    """Less is shown where there is less room."""
    with Terminal([*TOP, str(log)], columns=120, lines=40) as terminal:
        terminal.wait_for_text("p50", "max", "slow batch", "lost: nothing", "q quits")
        # It is longer from frame to frame, until the log is read.
        terminal.wait_for(re.compile("\nidle .*[▁▂▃▄▅▆▇█]{20}").search)
        terminal.resize(60, 12)
        terminal.wait_for(lambda text: "q quits" in text and "slow batch" not in text)
        terminal.resize(30, 4)
        terminal.wait_for(lambda text: "sched-profiler top" in text and "steps/s" not in text)
        terminal.resize(120, 40)
        terminal.wait_for_text("slow batch", "q quits")
        terminal.type("Q")
        assert terminal.wait() == 0


def test_a_log_that_rotates_is_followed(tmp_path: Path) -> None:
    """Parts are closed, compressed and removed; no batch is missing."""
    rotation = Rotation(part_bytes=20_000, keep_parts=2, compress="gzip")
    sink = JsonlSink(tmp_path / "run.jsonl", rotation=rotation)
    with Terminal([*TOP, str(tmp_path)]) as terminal:
        for number, record in enumerate(ended(0.1, 400, run_id="rotates"), 1):
            sink.write(record)
            if number % 20 == 0:
                sink.flush()
                shown = re.compile(rf"\n{number - 1} |\nrotates ")
                terminal.wait_for(shown.search)
        sink.close()
        terminal.wait_for_text("1 run, 1 engine", "lost: ")
        terminal.type("q")
        assert terminal.wait() == 0


def test_no_value_of_a_log_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    """Neither of a record, nor of a damaged line, nor the name of the file."""
    log = tmp_path / f"{EVIL.replace('/', '')}.jsonl"
    damaged = f'{{"batch_id":"{EVIL}"}}\n'.encode("utf-8", "surrogateescape")
    lines = map(encode, ended(3600, 200, run_id=EVIL))
    log.write_bytes(b"".join(lines) + damaged + b'{"a":"\\u001b[2J"}\n' + damaged)
    for command in ([*TOP, str(log), "--once"], [*TOP, str(log)]):
        with Terminal(command) as terminal:
            terminal.wait_for_text("slow batch", "3 lines left out")
            shown = terminal.wait_for_text(r"\x1b]0;owned\x07")
            terminal.type("q")
            assert terminal.wait() == 0
        assert "last line left out: " in shown
        for forbidden in (b"\x1b]", b"\x07", b"\xc2\x9b", "\u202e".encode()):
            assert forbidden not in terminal.printed
    assert "sched-profiler" not in terminal._screen.title


def test_it_runs_in_tmux(log: Path, tmp_path: Path) -> None:
    """A terminal that many use, with another idea of escape sequences."""
    tmux = shutil.which("tmux")
    if tmux is None:
        lacks("tmux is not installed")
    base = [tmux, "-S", str(tmp_path / "tmux"), "-f", os.devnull]

    def ask(*arguments: str) -> str:
        done = subprocess.run([*base, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    def wait_for(shown: str) -> None:
        deadline = time.monotonic() + 60
        while shown not in ask("capture-pane", "-p"):
            assert time.monotonic() < deadline, ask("capture-pane", "-p")
            time.sleep(0.05)

    ask("new-session", "-d", "-x", "100", "-y", "40", "sh")
    ask("resize-window", "-x", "100", "-y", "40")
    try:
        ask("send-keys", f"{' '.join(TOP)} {log}; echo it ended with $?", "Enter")
        wait_for("slow batch")
        assert "steps/s" in ask("capture-pane", "-p")
        ask("resize-window", "-x", "50", "-y", "12")
        wait_for("lost: nothing")
        ask("send-keys", "q")
        wait_for("it ended with 0")
    finally:
        ask("kill-server")


@pytest.mark.parametrize("width", [1, 20, 40, 56, 66, 79, 100, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(log: Path, width: int) -> None:
    """Nor are there more lines than it has; wide characters are counted as such."""
    window = Window(30)
    for record in ended(0.1, 500, run_id="运行" * 20):
        window.add(record)
    for number in range(40):
        window.add(batch(5, timestamp=time.time(), run_id=f"run{number}", dp_rank=number))
    window.add(batch(9, timestamp=time.time(), num_waiting_reqs=3_000_000))
    window.catch_up()
    window.settle()
    status = Status(name="a" * 300, problem="b" * 300, num_left_out=1, last_invalid="c", hint="q")
    for height in (1, 5, 12, 25, 40, None):
        text = frame(window, status, width=width, height=height, is_ascii=True)
        lines = text.split("\n")
        assert all(line.cell_len <= width for line in lines)
        assert height is None or len(lines) <= height
        if height == 40 and width == 100:
            assert "more engines" in text.plain
            assert "slow batch" in text.plain
    # The names of runs are all that is not ASCII.
    assert text.plain.replace("运行", "").replace("运", "").replace("…", "").isascii()


def test_how_long_nothing_came_is_said(capsys: Capture, tmp_path: Path) -> None:
    """An old log shows its end, and how long ago that was."""
    log = write_log(tmp_path / "old.jsonl", records(100, start=time.time() - 7 * 86_400))
    assert main(["top", str(log), "--once"]) == 0
    assert "; up to the newest batch, 7 d ago" in capsys.readouterr().out
    log = write_log(tmp_path / "idle.jsonl", ended(20, 100))
    assert main(["top", str(log), "--once", "--window", "10min"]) == 0
    assert re.search(r"; no batch for \d+ (s|min)\n", capsys.readouterr().out)


def test_a_frame_is_plain_where_there_are_no_other_characters(
    log: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a locale without UTF-8."""
    monkeypatch.setattr(Console, "encoding", "ascii")
    assert main(["top", str(log), "--once"]) == 0
    assert capsysbinary.readouterr().out.isascii()
