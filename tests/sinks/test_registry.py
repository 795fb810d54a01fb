"""Sinks are found by name, and one that cannot be made does not stop the others."""

from __future__ import annotations

import logging
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import fsspec
import pytest
from engine_under_test import serve

from sched_profiler import (
    BatchProfiler,
    BatchRecord,
    JsonlSink,
    MemorySink,
    SettingError,
    Sink,
    TeeSink,
)
from sched_profiler.settings import Settings
from sched_profiler.sinks.base import SinkContext
from sched_profiler.sinks.console import ConsoleSink
from sched_profiler.sinks.registry import GROUP, find_sinks, make_sinks
from sched_profiler.verify import verify

ROOT = Path(__file__).parents[2]

PLUG_IN = """
from sched_profiler import MemorySink

def shop(context):
    sink = MemorySink()
    sink.log = context.settings.log
    return sink

def broken(context):
    raise RuntimeError("no key")
"""


def context(**settings: object) -> SinkContext:
    """Return what an adapter would pass."""
    lines: list[str] = []
    return SinkContext(settings=Settings(**settings), dp_rank=1, print_line=lines.append)  # type: ignore[arg-type]  # whatever a test asks for


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package of somebody else's with sinks, as an installer leaves it."""
    site = tmp_path / "site"
    info = site / "shop-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\nshop = shop_sinks:shop\nbroken = shop_sinks:broken\n"
        "gone = shop_sinks:gone\nabsent = not_installed_at_all:sink\n"
    )
    (site / "shop_sinks.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(str(site))
    yield site  # type: ignore[misc]  # pytest takes it from here
    sys.modules.pop("shop_sinks", None)


def test_our_own_sinks_are_registered_like_everybodys() -> None:
    """What pyproject.toml declares is what is installed; if not: make setup."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["entry-points"][GROUP]
    found = find_sinks(declared)
    assert {entry_point.name: entry_point.value for entry_point in found} == declared
    assert all(callable(entry_point.load()) for entry_point in found)


@pytest.mark.parametrize(
    ("environ", "kinds"),
    [
        ({}, [JsonlSink]),
        ({"VLLM_SCHEDULER_PROFILING_CONSOLE": "1"}, [JsonlSink, ConsoleSink]),
        ({"SCHED_PROFILER_SINKS": " console , console,"}, [ConsoleSink]),
        (
            {"SCHED_PROFILER_SINKS": "jsonl", "VLLM_SCHEDULER_PROFILING_CONSOLE": "1"},
            [JsonlSink],
        ),
        ({"SCHED_PROFILER_SINKS": "console,jsonl"}, [ConsoleSink, JsonlSink]),
    ],
)
def test_the_variables_say_which_sinks(environ: dict[str, str], kinds: list[type]) -> None:
    """SCHED_PROFILER_SINKS wins; without it the three variables of the original feature."""
    settings = Settings.from_environ(environ)
    made = make_sinks(
        find_sinks(settings.sinks),
        SinkContext(settings=settings, dp_rank=None, print_line=print),
    )
    assert tuple(made) == settings.sinks
    assert [type(sink) for sink in made.values()] == kinds


def test_a_sink_of_another_package_is_made_with_what_it_needs(plug_in: Path) -> None:
    """The log's path stands for all that the context has."""
    sink = make_sinks(find_sinks(["shop"]), context(log="/x/run.jsonl"))["shop"]
    assert isinstance(sink, MemorySink)
    assert sink.log == "/x/run.jsonl"  # type: ignore[attr-defined]  # the plug-in's own


def test_an_unknown_name_is_an_error_with_variable_value_and_known_names(plug_in: Path) -> None:
    """Whoever reads the log can mend it."""
    with pytest.raises(SettingError) as caught:
        find_sinks(["jsonl", "prometeus"])
    assert str(caught.value) == (
        "SCHED_PROFILER_SINKS='jsonl,prometeus' asks for 'prometeus', which is no sink; "
        "known are absent, broken, console, gone, jsonl, otel, prometheus, shop"
    )


def test_nothing_is_imported_before_a_sink_is_made(plug_in: Path) -> None:
    """Every vLLM process checks the names; only the engine's makes sinks."""
    find_sinks(["shop"])
    assert "shop_sinks" not in sys.modules


def test_a_name_that_two_packages_claim_is_an_error(plug_in: Path) -> None:
    """Which of them wins must not depend on the order of folders."""
    info = plug_in / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nshop = rival:shop\n")
    with pytest.raises(SettingError, match="'shop' is both rival:shop and shop_sinks:shop"):
        find_sinks(["shop"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "no key"), ("gone", "AttributeError"), ("absent", "not_installed_at_all")],
)
def test_a_sink_that_cannot_be_made_does_not_stop_the_others(
    plug_in: Path, caplog: pytest.LogCaptureFixture, record: BatchRecord, name: str, message: str
) -> None:
    """It is named in the log with its traceback."""
    sinks = make_sinks(find_sinks([name, "shop"]), context())
    assert list(sinks) == ["shop"]
    sinks["shop"].write(record)
    assert f"sink {name} could not be made" in caplog.text
    assert message in caplog.text


def test_if_none_can_be_made_profiling_is_off(plug_in: Path) -> None:
    """The adapter logs this error and serves on."""
    with pytest.raises(SettingError, match=r"\(broken\) none could be made; the log says"):
        make_sinks(find_sinks(["broken"]), context())


def test_strict_lets_the_failure_through(plug_in: Path) -> None:
    """For tests."""
    with pytest.raises(RuntimeError, match="no key"):
        make_sinks(find_sinks(["broken"]), context(strict=True))


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("otel", "opentelemetry", "otel")],
)
def test_without_the_extra_the_error_says_what_to_install(
    name: str,
    module: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line, no traceback, and the other sinks are made."""
    for loaded in [m for m in sys.modules if m.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    for ours in ("prometheus", "opentelemetry"):
        monkeypatch.delitem(sys.modules, f"sched_profiler.sinks.{ours}", raising=False)
    with caplog.at_level(logging.ERROR):
        sinks = make_sinks(find_sinks([name, "jsonl"]), context())
    assert list(sinks) == ["jsonl"]
    assert f"sink {name} needs {module}" in caplog.text
    assert f'pip install ".[{extra}]"' in caplog.text
    assert "Traceback" not in caplog.text


def test_the_sinks_of_extras_are_made_like_the_others() -> None:
    """With what the settings say."""
    sinks = make_sinks(find_sinks(["prometheus", "otel"]), context(prometheus_port=9400))
    assert repr([*sinks.values()]) == "[PrometheusSink(port=9400), OpenTelemetrySink()]"


def test_records_go_one_way_from_the_variables_to_a_store(tmp_path: Path) -> None:
    """Beside other sinks; the run, its rank and what is lost are known at the end of the way."""
    url = "memory://one-way/"
    settings = Settings.from_environ(
        {
            "VLLM_SCHEDULER_PROFILING_LOG": url,
            "SCHED_PROFILER_SINKS": "console,jsonl,prometheus",
            "SCHED_PROFILER_SPOOL": str(tmp_path),
        }
    )
    lines: list[str] = []
    context = SinkContext(settings=settings, dp_rank=3, print_line=lines.append)
    sinks = make_sinks(find_sinks(settings.sinks), context)
    assert [getattr(sink, "shown", name) for name, sink in sinks.items()] == [
        *("console", url, "prometheus")
    ]
    with BatchProfiler(TeeSink(*sinks.values()), dp_rank=3) as profiler:
        serve(profiler, 20)
        next(profiler.batch_ids)
        profiler.writer.drop()
    (run,) = verify(url).runs
    assert (run.run_id, run.dp_rank, run.num_records) == (profiler.run_id, 3, 20)
    assert (run.num_missing, run.num_dropped, run.num_unexplained) == (1, 1, 0)
    assert run.end == "clean"
    assert lines[-1].startswith("scheduler profile: 20 batches")
    fsspec.filesystem("memory").store.clear()


def test_a_factory_and_its_sinks_are_what_the_types_say() -> None:
    """The context of a test is enough to make the two that need no extra."""
    for entry_point in find_sinks(["jsonl", "console"]):
        assert isinstance(entry_point, EntryPoint)
        assert isinstance(entry_point.load()(context()), Sink)
