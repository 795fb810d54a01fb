"""`sched-profiler top`."""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from typing import TYPE_CHECKING

from sched_profiler.cli.command import Command, add_logs, needing
from sched_profiler.errors import LogError, SchedProfilerError
from sched_profiler.redact import is_url, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.text import Text

    from sched_profiler.cli.top_screen import Status
    from sched_profiler.follow import Follower
    from sched_profiler.record import BatchRecord
    from sched_profiler.window import Window

__all__ = ["COMMAND"]

_UNITS_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0}
_LEAST_INTERVAL_S, _LEAST_WINDOW_S = 0.02, 2.0
_POLL_S = 0.1
_LONGEST_S = 0.5
"""How long a frame may be late because records are read."""
_QUEUED_RECORDS = 20_000
_QUIT_KEYS = ("q", "Q")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|min|)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration; expected a number with ms, s or min, such as 30s"
        )
    return float(match[1]) * _UNITS_S[match[2]]


def _at_least(least: float) -> Callable[[str], float]:
    def seconds(text: str) -> float:
        value = _seconds(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is too short; at least {least:g} s")
        return value

    return seconds


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs(parser)
    parser.add_argument(
        "--window",
        metavar="TIME",
        type=_at_least(_LEAST_WINDOW_S),
        default=30.0,
        help="show so much of the log's end (default: 30s)",
    )
    parser.add_argument(
        "--interval",
        metavar="TIME",
        type=_at_least(_LEAST_INTERVAL_S),
        default=0.1,
        help="draw so often (default: 100ms)",
    )
    parser.add_argument(
        "--once", action="store_true", help="print one frame and end; the log must be there"
    )


def _run(options: argparse.Namespace) -> bool:
    with needing("top", "top"):
        from rich.console import Console  # noqa: PLC0415 - an extra
    from sched_profiler.follow import Follower  # noqa: PLC0415 - only for this command
    from sched_profiler.window import Window  # noqa: PLC0415 - likewise

    console = Console(highlight=False)
    if not options.once and (not console.is_terminal or console.is_dumb_terminal):
        raise SchedProfilerError(
            "top draws on a terminal, which standard output is not; --once prints one frame"
        )
    window = Window(options.window, is_prompt=not all(is_url(log) for log in options.logs))
    with contextlib.closing(Follower(*options.logs, last_s=options.window)) as follower:
        if options.once:
            _print_once(console, follower, window, options.logs)
        else:
            _watch(console, follower, window, options)
    return True


def _print_once(console: Console, follower: Follower, window: Window, logs: list[str]) -> None:
    for record in follower.poll():
        window.add(record)
    window.catch_up()
    window.settle()
    if window.everything.newest is None:
        names = ", ".join(map(without_credentials, logs))
        raise LogError(
            f"no record in {names}: {follower.problem or follower.last_invalid or 'it is empty'}; "
            "name another log, or leave --once out to wait for one"
        )
    console.print(_frame(console, window, _status(follower, logs), height=None), soft_wrap=True)


def _watch(
    console: Console, follower: Follower, window: Window, options: argparse.Namespace
) -> None:
    """Draw until a key ends it."""
    from rich.console import ConsoleDimensions  # noqa: PLC0415 - an extra
    from rich.live import Live  # noqa: PLC0415 - likewise

    reader = _Reader(follower)
    hint = "q quits" if sys.stdin.isatty() else "Ctrl-C quits"
    with (
        _signals() as signalled,
        _keys(signalled) as pressed,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        reader.start()
        drawn = None
        while True:
            began = time.monotonic()
            # What COLUMNS and LINES say is not so any more when the window gets another size.
            console.size = ConsoleDimensions(*os.get_terminal_size(sys.stdout.fileno()))
            has_caught_up = reader.has_caught_up.is_set()
            for record in reader.taken(_LONGEST_S):
                window.add(record)
            if has_caught_up and not window.has_caught_up:
                window.catch_up()
            window.settle()
            status = _status(follower, options.logs, hint)
            text = _frame(console, window, status, height=console.height)
            # A terminal that does not change needs no drawing.
            if (text, console.size) != drawn:
                drawn = text, console.size
                live.update(text, refresh=True)
            left = options.interval - (time.monotonic() - began)
            if (key := pressed(max(0.0, left))) in _QUIT_KEYS:
                return
            if isinstance(key, signal.Signals):
                sys.exit(128 + key)


def _frame(console: Console, window: Window, status: Status, *, height: int | None) -> Text:
    from sched_profiler.cli.top_screen import frame  # noqa: PLC0415 - needs an extra

    is_ascii = not console.encoding.startswith("utf")
    return frame(window, status, width=console.width, height=height, is_ascii=is_ascii)


def _status(follower: Follower, logs: list[str], hint: str = "") -> Status:
    from sched_profiler.cli.top_screen import Status  # noqa: PLC0415 - needs an extra

    return Status(
        name=" ".join(map(without_credentials, logs)),
        problem=follower.problem,
        num_left_out=follower.tally.num_skipped_lines,
        last_invalid=follower.last_invalid,
        hint=hint,
    )


class _Reader:
    """Reads on a thread of its own: keys are answered while a store takes its time."""

    def __init__(self, follower: Follower) -> None:
        self.has_caught_up = threading.Event()
        self._follower = follower
        self._records: queue.Queue[BatchRecord | BaseException] = queue.Queue(_QUEUED_RECORDS)
        # Nobody waits for it: what it reads is only shown.
        self._thread = threading.Thread(target=self._read, name="sched-profiler-top", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def taken(self, seconds: float) -> Iterator[BatchRecord]:
        """Yield what was read since the last time, for no more than some seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                record = self._records.get_nowait()
            except queue.Empty:
                return
            if isinstance(record, BaseException):
                raise record
            yield record

    def _read(self) -> None:
        try:
            while True:
                for record in self._follower.poll():
                    self._records.put(record)
                self.has_caught_up.set()
                time.sleep(_POLL_S)
        except BaseException as error:  # noqa: BLE001 - the main thread tells the user
            self._records.put(error)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Take the signals that ask to end; yield where their numbers can be read, a byte each.

    What a handler raises comes up in whatever runs just then, and may leave a lock taken for ever.
    The second signal does what it did before: whoever sends it does not want to wait.
    """
    hear, tell = os.pipe()
    before = {number: signal.getsignal(number) for number in _ENDING}

    def note(number: int, _: object) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        os.write(tell, bytes([number]))

    try:
        for number in before:
            signal.signal(number, note)
        yield hear
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(hear)
        os.close(tell)


@contextlib.contextmanager
def _keys(signalled: int) -> Iterator[Callable[[float], str | signal.Signals | None]]:
    """Take keys one by one; yield a function that waits so many seconds for one, or a signal.

    Ctrl-C counts as the key that ends it.
    """
    terminal = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = None if terminal is None else termios.tcgetattr(terminal)
    places = [signalled] if terminal is None else [signalled, terminal]

    def pressed(seconds: float) -> str | signal.Signals | None:
        ready = select.select(places, [], [], seconds)[0]
        if signalled in ready:
            number = signal.Signals(os.read(signalled, 1)[0])
            return _QUIT_KEYS[0] if number == signal.SIGINT else number
        if terminal is None or terminal not in ready:
            return None
        return os.read(terminal, 1).decode(errors="replace") or _QUIT_KEYS[0]  # it is gone

    try:
        if terminal is not None:
            tty.setcbreak(terminal)
        yield pressed
    finally:
        if terminal is not None and before is not None:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


COMMAND = Command(
    name="top",
    purpose="Watch logs that grow: a live view in the terminal.",
    examples="""\
  %(prog)s scheduler_profiling.jsonl
      what the engine does now: rates, times, queues, slow batches; q quits
  %(prog)s logs/ --window 5min
      all engines whose logs are in a folder, over five minutes
  %(prog)s s3://bucket/prefix/
      a fleet's logs in a bucket, as they arrive
  %(prog)s scheduler_profiling.jsonl --once
      print one frame and end
""",
    add_arguments=_add_arguments,
    run=_run,
)
