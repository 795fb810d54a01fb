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
        "SCHED_PROFILER_PART_MIB": "64",
        "SCHED_PROFILER_PART_SECONDS": "60",
        "SCHED_PROFILER_KEEP_PARTS": "10",
        "SCHED_PROFILER_KEEP_MIB": "1024",
        "SCHED_PROFILER_COMPRESS": "Zstd",
        "SCHED_PROFILER_SPOOL": "~/spool",
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
        part_mib=64,
        part_seconds=60,
        keep_parts=10,
        keep_mib=1024,
        compress="zstd",
        spool=str(Path.home() / "spool"),
    )


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("VLLM_ENABLE_SCHEDULER_PROFILING", "maybe", "use true, 1, false or 0"),
        ("VLLM_SCHEDULER_PROFILING_CONSOLE", "yes", "use true, 1, false or 0"),
        ("SCHED_PROFILER_CONSOLE_EVERY", "0", "use a whole number above 0"),
        ("SCHED_PROFILER_CONSOLE_EVERY", "-3", "use a whole number above 0"),
        ("SCHED_PROFILER_CONSOLE_EVERY", "ten", "use a whole number above 0"),
        ("SCHED_PROFILER_PART_MIB", "64MiB", "use a whole number above 0"),
        ("SCHED_PROFILER_COMPRESS", "lz4", "use gzip, zstd or none"),
        ("SCHED_PROFILER_PROMETHEUS_PORT", "65536", "use a whole number above 0, up to 65535"),
    ],
)
def test_a_wrong_value_names_variable_value_and_remedy(name: str, value: str, remedy: str) -> None:
    """Whoever reads the log can mend it."""
    with pytest.raises(SettingError, match=f"{name}='{value}'.*{remedy}"):
        Settings.from_environ({name: value})


def test_a_url_may_name_the_log_and_its_password_is_not_shown() -> None:
    """Whatever prints the settings prints no credential."""
    url = "ftp://user:s3cret@host/x?token=abcdef"
    settings = Settings.from_environ({"VLLM_SCHEDULER_PROFILING_LOG": url})
    assert settings.log == url
    assert "ftp://host/x" in repr(settings)
    assert "s3cret" not in repr(settings)
    assert "abcdef" not in repr(settings)


def test_an_unknown_placeholder_is_an_error_that_names_those_there_are() -> None:
    """Also in a URL."""
    with pytest.raises(
        SettingError, match=r"PROFILING_LOG: \{rank\} in .* no placeholder; .*_rank"
    ):
        Settings.from_environ({"VLLM_SCHEDULER_PROFILING_LOG": "s3://bucket/{rank}/"})


def test_a_spool_is_a_folder() -> None:
    """Not another store."""
    with pytest.raises(SettingError, match="SPOOL is a URL; name a folder"):
        Settings.from_environ({"SCHED_PROFILER_SPOOL": "s3://bucket"})


@pytest.mark.parametrize("name", ["KEEP_PARTS", "KEEP_MIB", "COMPRESS"])
def test_what_is_about_closed_parts_needs_rotation(name: str) -> None:
    """Nothing is ever kept or compressed otherwise, and the message says what to set."""
    environ = {f"SCHED_PROFILER_{name}": "gzip" if name == "COMPRESS" else "3"}
    with pytest.raises(SettingError, match=f"{name} is about closed parts.*_PART_MIB or"):
        Settings.from_environ(environ)
    environ["SCHED_PROFILER_PART_SECONDS"] = "60"
    assert Settings.from_environ(environ).part_seconds == 60


def test_a_store_always_has_closed_parts() -> None:
    """A URL needs no further setting."""
    environ = {
        "VLLM_SCHEDULER_PROFILING_LOG": "memory://x/",
        "SCHED_PROFILER_KEEP_MIB": "3",
        "SCHED_PROFILER_COMPRESS": "none",
    }
    settings = Settings.from_environ(environ)
    assert settings.keep_mib == 3
    assert settings.compress == "none"
