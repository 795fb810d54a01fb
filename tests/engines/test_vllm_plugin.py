"""Profiling that is off is absent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.vllm

# A child for each set of variables: to import vLLM takes as long as all the rest.
LOAD_PLUGINS = """
import json, os, sys
import vllm.plugins
from vllm import envs
from vllm.config.scheduler import SchedulerConfig
from vllm.platforms.interface import Platform

def patched():
    # A function of the module up to vLLM 0.30, a class method of the platform since 0.31.
    of_platform = hasattr(Platform, "validate_environ")
    check = Platform.validate_environ.__func__ if of_platform else envs.validate_environ
    return SchedulerConfig.get_scheduler_cls, check

before = patched()
assert not [name for name in sys.modules if name.startswith("sched_profiler")]
for name, variables in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        continue
    os.environ.update(variables)
    print("CASE", name, flush=True)
    vllm.plugins.load_general_plugins()
    print("PATCHED", [one is not other for one, other in zip(before, patched())])
    print("LOADED", sorted(name for name in sys.modules if name.startswith("sched_profiler")))
    sys.stdout.flush()
    os._exit(0)
"""

ON = {"VLLM_ENABLE_SCHEDULER_PROFILING": "1"}
CASES: dict[str, dict[str, str]] = {
    "unset": {},
    "false": {"VLLM_ENABLE_SCHEDULER_PROFILING": "false"},
    "on": ON,
    "misspelled switch": {"VLLM_ENABLE_SCHEDULER_PROFILING": "maybe"},
    "unknown sink": ON | {"SCHED_PROFILER_SINKS": "jsonl,prometeus"},
}


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """Return what loading vLLM's plug-ins prints, in a fresh process for each of the cases."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_PLUGINS, json.dumps(CASES)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    parts = re.split(r"^CASE (.*)$", done.stdout, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("case", ["unset", "false"])
def test_off_imports_only_the_entry_point_and_patches_nothing(
    printed: dict[str, str], case: str
) -> None:
    """With the variable unset, and with it set to false."""
    assert "PATCHED [False, False]" in printed[case]
    modules = ["sched_profiler", "sched_profiler.engines", "sched_profiler.engines.vllm_plugin"]
    assert f"LOADED {modules}" in printed[case]


def test_on_patches_what_the_test_of_off_looks_at(printed: dict[str, str]) -> None:
    """Otherwise that test would show nothing."""
    assert "PATCHED [True, True]" in printed["on"]
    assert "'sched_profiler.engines.vllm'" in printed["on"]


def test_a_misspelled_switch_is_named_in_the_log_and_patches_nothing(
    printed: dict[str, str],
) -> None:
    """Profiling is off, and serving is as it was."""
    assert "PATCHED [False, False]" in printed["misspelled switch"]
    assert (
        "scheduler profiling is off: VLLM_ENABLE_SCHEDULER_PROFILING='maybe' is neither true nor"
        " false; use true, 1, false or 0" in printed["misspelled switch"]
    )


def test_an_unknown_sink_is_named_in_the_log_and_patches_nothing(printed: dict[str, str]) -> None:
    """Likewise."""
    text = printed["unknown sink"]
    assert "PATCHED [False, False]" in text
    assert "scheduler profiling is off: SCHED_PROFILER_SINKS='jsonl,prometeus' asks for" in text
    assert "known are console, jsonl, otel, prometheus" in text
