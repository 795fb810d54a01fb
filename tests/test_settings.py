"""The environment says what to do, and a wrong value says how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sched_profiler import SettingError
from sched_profiler.settings import Settings


def test_without_variables_profiling_is_off() -> None:
    """And every default is the documented one."""
    assert Settings.from_environ({}) == Settings(
        enabled=False,
        log="scheduler_profiling.jsonl",
        console=False,
        console_every=1,
        sinks=("jsonl",),
        prometheus_port=None,
        request_ids=False,
        strict=False,
    )


@pytest.mark.parametrize(
    ("spelling", "meaning"),
    [
        *((spelling, True) for spelling in ("1", "true", "True", " TRUE ")),
        *((spelling, False) for spelling in ("0", "false", "False", "")),
    ],
)
def test_true_and_false_are_spelled_as_vllm_spells_them(spelling: str, *, meaning: bool) -> None:
    """In any case; an empty variable is an unset one."""
    settings = Settings.from_environ({"VLLM_ENABLE_SCHEDULER_PROFILING": spelling})
    assert settings.enabled is meaning


def test_all_variables_are_read() -> None:
    """Each sets what it names."""
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": "~/logs/run.jsonl",
        "VLLM_SCHEDULER_PROFILING_CONSOLE": "1",
        "SCHED_PROFILER_CONSOLE_EVERY": "50",
        "SCHED_PROFILER_SINKS": "jsonl, prometheus,jsonl",
        "SCHED_PROFILER_PROMETHEUS_PORT": "9400",
        "SCHED_PROFILER_REQUEST_IDS": "true",
        "SCHED_PROFILER_STRICT": "1",
    }
    assert Settings.from_environ(environ) == Settings(
        enabled=True,
        log=str(Path.home() / "logs" / "run.jsonl"),
        console=True,
        console_every=50,
        sinks=("jsonl", "prometheus"),
        prometheus_port=9400,
        request_ids=True,
        strict=True,
    )


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("VLLM_ENABLE_SCHEDULER_PROFILING", "maybe", "use true, 1, false or 0"),
        ("VLLM_SCHEDULER_PROFILING_CONSOLE", "yes", "use true, 1, false or 0"),
        ("SCHED_PROFILER_CONSOLE_EVERY", "0", "no whole number above 0"),
        ("SCHED_PROFILER_CONSOLE_EVERY", "-3", "no whole number above 0"),
        ("SCHED_PROFILER_CONSOLE_EVERY", "ten", "no whole number above 0"),
        ("SCHED_PROFILER_PROMETHEUS_PORT", "65536", "no whole number above 0, up to 65535"),
    ],
)
def test_a_wrong_value_names_variable_value_and_remedy(name: str, value: str, remedy: str) -> None:
    """Whoever reads the log can mend it."""
    with pytest.raises(SettingError, match=f"{name}='{value}'.*{remedy}"):
        Settings.from_environ({name: value})


def test_a_url_is_refused_without_repeating_its_password() -> None:
    """This version writes to files; a URL may hold a credential."""
    with pytest.raises(SettingError, match=r"s3:// URL.*name a path") as refused:
        Settings.from_environ({"VLLM_SCHEDULER_PROFILING_LOG": "s3://key:s3cret@bucket/x"})
    assert "s3cret" not in str(refused.value)
