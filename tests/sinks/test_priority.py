"""Threads of ours give way to the engine's."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from sched_profiler.sinks.priority import lower_priority


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux")
def test_threads_of_ours_give_way_to_the_engine() -> None:
    """And the engine's own priority is as before."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []

    def run() -> None:
        lower_priority()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [min(19, before + 10)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
