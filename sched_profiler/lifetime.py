"""Runs a last action on every way in which a process can still run one."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, NamedTuple

from sched_profiler.messages import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["at_process_end", "hook_signals"]


class _LastActions(NamedTuple):
    close: Callable[[], object]
    hurry: Callable[[], object]
    wake: Callable[[], object]


_registered: list[_LastActions] = []
_hooked_in: int | None = None
_heard_at: int | None = None


def at_process_end(
    close: Callable[[], object], *, hurry: Callable[[], object], wake: Callable[[], object]
) -> Callable[[], None]:
    """Call `close` once before this process ends; return a function that takes that back.

    Covered are interpreter exit, the exit of a multiprocessing child (which skips `atexit`), and
    SIGTERM. Where nobody handles SIGTERM the process still dies of it, only a moment later. Where
    somebody handles SIGTERM or SIGINT, how the process goes on is theirs to decide, and often
    someone else's to cut short: then `hurry` is called right after their handler, and must not
    wait: the process has other things to do now. SIGKILL runs nothing.

    Python runs a handler when the main thread is back from native code, such as a step of a model,
    and by then the process may have been killed. So `wake` is called at once, on another thread.
    """
    _hook_process_end()
    actions = _LastActions(close, hurry, wake)
    _registered.append(actions)

    def take_back() -> None:
        with contextlib.suppress(ValueError):
            _registered.remove(actions)

    return take_back


def _close_all() -> None:
    # A process that was forked has nothing to close: its parent does.
    while _registered and _hooked_in == os.getpid():
        # It stays registered until it is closed: a signal may end this in the middle.
        actions = _registered[-1]
        actions.close()
        with contextlib.suppress(ValueError):
            _registered.remove(actions)


def _hook_process_end() -> None:
    global _hooked_in  # noqa: PLW0603 - hooks are set once in a process, and a fork is another one
    if _hooked_in != os.getpid():
        _hooked_in = os.getpid()
        _registered.clear()
        atexit.register(_close_all)
        # Any priority will do: it makes multiprocessing run this before it leaves by os._exit.
        Finalize(None, _close_all, exitpriority=0)
        _hear_signals()
    hook_signals()


def hook_signals() -> None:
    """See to it that SIGTERM and SIGINT are noticed, as far as this thread may decide that.

    Only the main thread may. Somebody may have set a handler since the last call: then theirs is
    called by ours again.
    """
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            _hook_signal(signum)


def _hook_signal(signum: signal.Signals) -> None:
    previous = signal.getsignal(signum)
    if previous is signal.SIG_DFL and signum == signal.SIGTERM:
        signal.signal(signum, _close_and_die)
    # Python's own handler of SIGINT raises KeyboardInterrupt: that ends in an interpreter exit.
    elif (
        callable(previous)
        and previous not in (signal.default_int_handler, _close_and_die)
        and not isinstance(previous, _HurryAfter)
    ):
        signal.signal(signum, _HurryAfter(previous))


def _hear_signals() -> None:
    """Hear of signals that the main thread cannot take yet, unless somebody else does."""
    global _heard_at  # noqa: PLW0603 - there is one such place in a process
    if threading.current_thread() is not threading.main_thread():
        return
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    # What a parent of ours listened to before it forked is not for us.
    if before not in (-1, _heard_at):
        signal.set_wakeup_fd(before)
        os.close(hear)
        os.close(tell)
        return
    _heard_at = tell
    threading.Thread(target=_hear, args=(hear,), name="sched-profiler-signals", daemon=True).start()


def _hear(file: int) -> None:
    while heard := os.read(file, 64):
        if signal.SIGTERM in heard or signal.SIGINT in heard:
            for actions in _registered.copy():
                actions.wake()


class _HurryAfter:
    """Calls somebody's handler, and then sees to it that what was finished is written at once."""

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._handler(signum, frame)
        finally:
            for actions in _registered.copy():
                try:
                    actions.hurry()
                except Exception:
                    logger.exception("writing batch records at a signal failed")


def _close_and_die(signum: int, _frame: FrameType | None) -> None:
    _close_all()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
