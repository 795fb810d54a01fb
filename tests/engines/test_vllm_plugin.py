"""Profiling that is off is absent."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.vllm

LOAD_PLUGINS = """
import sys
from vllm import envs
from vllm.config.scheduler import SchedulerConfig
from vllm.platforms.interface import Platform
from vllm.plugins import load_general_plugins

def patched():
    # A function of the module up to vLLM 0.30, a class method of the platform since 0.31.
    of_platform = hasattr(Platform, "validate_environ")
    check = Platform.validate_environ.__func__ if of_platform else envs.validate_environ
    return SchedulerConfig.get_scheduler_cls, check

before = patched()
load_general_plugins()
after = patched()
print("PATCHED", [one is not other for one, other in zip(before, after)])
print("LOADED", sorted(name for name in sys.modules if name.startswith("sched_profiler")))
"""


def load_plugins(**variables: str) -> str:
    """Load vLLM's plugins in a fresh process and return what it found."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")} | variables
    done = subprocess.run(
        [sys.executable, "-c", LOAD_PLUGINS],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("value", [None, "false"])
def test_off_imports_only_the_entry_point_and_patches_nothing(value: str | None) -> None:
    """With the variable unset, and with it set to false."""
    variables = {} if value is None else {"VLLM_ENABLE_SCHEDULER_PROFILING": value}
    printed = load_plugins(**variables)
    assert "PATCHED [False, False]" in printed
    modules = ["sched_profiler", "sched_profiler.engines", "sched_profiler.engines.vllm_plugin"]
    assert f"LOADED {modules}" in printed


def test_on_patches_what_the_test_of_off_looks_at() -> None:
    """Otherwise that test would show nothing."""
    printed = load_plugins(VLLM_ENABLE_SCHEDULER_PROFILING="1")
    assert "PATCHED [True, True]" in printed
    assert "'sched_profiler.engines.vllm'" in printed


def test_an_unknown_sink_patches_nothing() -> None:
    """Profiling is off, and the error in vLLM's log says why; serving is as it was."""
    printed = load_plugins(
        VLLM_ENABLE_SCHEDULER_PROFILING="1", SCHED_PROFILER_SINKS="jsonl,prometeus"
    )
    assert "PATCHED [False, False]" in printed
    assert "scheduler profiling is off: SCHED_PROFILER_SINKS='jsonl,prometeus' asks for" in printed
    assert "known are console, jsonl, otel, prometheus" in printed
