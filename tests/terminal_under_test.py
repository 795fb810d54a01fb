"""A real pseudo-terminal with a program on it, and an emulator that knows what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import pyte

__all__ = ["Terminal"]

_PATIENCE_S = 60.0


class Terminal:
    """Runs a program on a terminal of its own.

    Attributes:
        printed: all that the program has sent to it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 100,
        lines: int = 40,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._own, self._programs = pty.openpty()
        self._set_size(columns, lines)
        self.before = termios.tcgetattr(self._programs)
        self.printed = b""
        self._process = subprocess.Popen(
            command,
            stdin=self._programs,
            stdout=self._programs,
            stderr=self._programs,
            env={**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **(environ or {})},
            cwd=cwd,
            start_new_session=True,
            # Ctrl-C is for whoever has the terminal.
            preexec_fn=lambda: fcntl.ioctl(self._programs, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no lock is taken
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._own)
        os.close(self._programs)

    @property
    def pid(self) -> int:
        """Number of the program's process."""
        return self._process.pid

    @property
    def attributes(self) -> list[object]:
        """How the terminal is set now: whether it echoes, and so on."""
        return termios.tcgetattr(self._programs)

    @property
    def text(self) -> str:
        """What it shows."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def wait_for(self, shown: Callable[[str], object]) -> str:
        """Wait until what it shows is so, and return that."""
        deadline = time.monotonic() + _PATIENCE_S
        while not shown(self.text):
            assert time.monotonic() < deadline, self.text
            self.take(0.05)
        return self.text

    def wait_for_text(self, *parts: str) -> str:
        """Wait until it shows some texts, and return all that it shows."""
        return self.wait_for(lambda text: all(part in text for part in parts))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._own, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Give the window another size."""
        self._screen.resize(lines, columns)
        self._set_size(columns, lines)

    def send_signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the program to end, and return its exit code."""
        deadline = time.monotonic() + _PATIENCE_S
        while self._process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self.take(0.05)
        self.take(0.0)
        return self._process.returncode

    def take(self, seconds: float) -> None:
        """Take what the program shows, for at most so long as nothing new comes."""
        while select.select([self._own], [], [], seconds)[0]:
            data = os.read(self._own, 65_536)
            self.printed += data
            self._stream.feed(data)
            seconds = 0.0

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
