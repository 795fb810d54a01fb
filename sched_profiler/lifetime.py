"""Runs a last action on every way in which a process can still run one."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["at_process_end"]

_actions: list[Callable[[], object]] = []


def at_process_end(action: Callable[[], object]) -> Callable[[], None]:
    """Call `action` once before this process ends; return a function that takes that back.

    Covered are interpreter exit, the exit of a multiprocessing child (which skips `atexit`), and
    SIGTERM where nobody handles it: the process then still dies of SIGTERM, only later. A process
    killed by SIGKILL runs nothing.
    """
    if not _actions:
        _hook_process_end()
    _actions.append(action)

    def take_back() -> None:
        with contextlib.suppress(ValueError):
            _actions.remove(action)

    return take_back


def _run_actions() -> None:
    while _actions:
        _actions.pop()()


def _hook_process_end() -> None:
    atexit.register(_run_actions)
    # Priority 0 or more: multiprocessing runs these before it leaves through os._exit.
    Finalize(None, _run_actions, exitpriority=0)
    # Only the main thread may set a handler, and one that is there is somebody else's decision.
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _die_of_sigterm)


def _die_of_sigterm(signum: int, _frame: FrameType | None) -> None:
    _run_actions()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
