"""What the adapter needs of vLLM: each name is taken away in turn, and vLLM goes on without us."""

from __future__ import annotations

import dataclasses
import logging
import re
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import real_scheduler
import vllm
from real_scheduler import make_request, make_scheduler, model_output
from real_vllm import read
from vllm.config.scheduler import SchedulerConfig
from vllm.v1.core.sched.scheduler import Scheduler

from sched_profiler.engines import vllm_binding
from sched_profiler.engines.vllm import install, profiled_class
from sched_profiler.engines.vllm_binding import (
    OF_CLASSES,
    OF_SCHEDULER,
    OF_VLLM,
    version_warning,
)
from sched_profiler.settings import Settings

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]

Make = Callable[..., Any]


def serve(scheduler: Any) -> int:
    """Serve one request to its end; return how many tokens the scheduler gave out for it."""
    scheduler.add_request(make_request(list(range(10, 50)), 3))
    generated = 0
    for _ in range(10):
        output = scheduler.schedule()
        sampled = [[7] for _ in output.num_scheduled_tokens]
        returned = scheduler.update_from_output(output, model_output(output, sampled))
        generated += sum(len(o.new_token_ids) for c in returned.values() for o in c.outputs)
        if not scheduler.has_requests():
            break
    return generated


def can_serve(make: Make, base: type) -> bool:
    """Whether vLLM's scheduler, without any part of ours, serves a request as things are."""
    try:
        return serve(make(base)) == 3
    except Exception:  # noqa: BLE001 - whatever vLLM says about what it lacks
        return False


@pytest.fixture
def make(model: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return what makes a scheduler of a class."""

    def make_of(cls: type) -> Any:
        monkeypatch.setattr(real_scheduler, "Scheduler", cls)
        return make_scheduler(model)

    return make_of


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return where profiled schedulers write to."""
    return tmp_path / "profile.jsonl"


@pytest.fixture
def profiled(make: Make, log: Path) -> Make:
    """Return what makes a profiled scheduler of a class."""
    return lambda base: make(profiled_class(base, Settings(enabled=True, log=str(log))))


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return what we logged at a level."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "sched_profiler" and record.levelno == level
    ]


def check_off(
    caplog: pytest.LogCaptureFixture, scheduler: Any, missing: list[str], log: Path
) -> None:
    """Check that one line names what is missing, and that nothing was put into the scheduler."""
    assert said(caplog, logging.ERROR) == [
        f"scheduler profiling is off: this vLLM lacks {', '.join(missing)}; upgrade sched-profiler"
    ]
    assert said(caplog, logging.WARNING) == []
    assert said(caplog, logging.INFO) == []
    assert not {"schedule", "update_from_output", "shutdown"} & set(vars(scheduler))
    assert list(log.parent.iterdir()) == []


def take_from_class(gone: pytest.MonkeyPatch, cls: type, name: str) -> None:
    """Take a name away from a class and from those that it inherits from."""
    for owner in cls.__mro__:
        if name in vars(owner):
            gone.delattr(owner, name)


def take_field(gone: pytest.MonkeyPatch, module: ModuleType, class_name: str, name: str) -> None:
    """Take a name away from the instances of a class of vLLM's that are made from now on."""
    cls = getattr(module, class_name)
    if issubclass(cls, msgspec.Struct):
        # The fields of a struct are fixed: another class takes its place.
        fields = [field for field in cls.__struct_fields__ if field != name]
        gone.setattr(module, class_name, msgspec.defstruct(class_name, fields))
        return
    take_from_class(gone, cls, name)
    if dataclasses.is_dataclass(cls):
        gone.delitem(cls.__dataclass_fields__, name)
    # What the constructor assigns, it assigns under another name.
    code = cls.__init__.__code__
    names = tuple("lost_" + n if n == name else n for n in code.co_names)
    gone.setattr(cls.__init__, "__code__", code.replace(co_names=names))


@pytest.mark.parametrize(
    "path", [f"{path}:{name}" for path, names in OF_CLASSES.items() for name in names]
)
def test_a_name_that_a_class_of_vllm_lacks(
    path: str, make: Make, profiled: Make, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, profiling is off, and vLLM serves wherever it can serve without that name."""
    caplog.set_level(logging.INFO)
    module, class_name, name = path.split(":")
    with pytest.MonkeyPatch.context() as gone:
        take_field(gone, import_module(module), class_name, name)
        scheduler = profiled(Scheduler)
        check_off(caplog, scheduler, [f"{class_name}.{name}"], log)
        if can_serve(make, Scheduler):
            assert serve(scheduler) == 3
            return
    assert serve(scheduler) == 3
    assert not log.exists()


@pytest.mark.parametrize("path", OF_CLASSES)
def test_a_class_that_vllm_lacks(
    path: str, profiled: Make, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The class is named, and vLLM, which still has it, serves."""
    caplog.set_level(logging.INFO)
    module, _, class_name = path.partition(":")
    with pytest.MonkeyPatch.context() as gone:
        gone.delattr(import_module(module), class_name)
        scheduler = profiled(Scheduler)
        check_off(caplog, scheduler, [f"{module}.{class_name}"], log)
        assert serve(scheduler) == 3
    assert not log.exists()


@pytest.mark.parametrize(
    "path",
    [*OF_VLLM, *(f"{path}.{name}" for path, names in OF_VLLM.items() for name in names)],
)
def test_a_name_that_is_patched_and_not_there_does_not_keep_vllm_from_starting(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM calls its plug-ins without a net: what leaves ours would end it."""
    monkeypatch.setattr("sched_profiler.engines.vllm._log_where_vllm_logs", lambda: None)
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", "1")
    before = SchedulerConfig.get_scheduler_cls
    module, _, way = path.partition(":")
    owner: Any = import_module(module)
    *steps, name = way.split(".")
    for step in steps:
        owner = getattr(owner, step)
    with pytest.MonkeyPatch.context() as gone:
        gone.delattr(owner, name)
        install()
    lacks = ".".join([*steps, name]) if steps else f"{module}.{name}"
    assert said(caplog, logging.ERROR) == [
        f"scheduler profiling is off: this vLLM lacks {lacks}; upgrade sched-profiler"
    ]
    assert SchedulerConfig.get_scheduler_cls is before


def test_whatever_fails_in_the_installation_does_not_keep_vllm_from_starting(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged with its traceback."""
    monkeypatch.setattr("sched_profiler.engines.vllm._log_where_vllm_logs", lambda: None)
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", "1")
    monkeypatch.setattr("sched_profiler.engines.vllm.missing_of_vllm", lambda: 1 / 0)
    install()
    assert said(caplog, logging.ERROR) == ["scheduler profiling is off: it could not be installed"]


PARTS = sorted(
    {
        ".".join(path.split(".")[: n + 1])
        for path in OF_SCHEDULER
        for n in range(path.count(".") + 1)
    }
)
"""Every bound path of a scheduler, and every object on the way to its end."""


@pytest.mark.parametrize("part", PARTS)
def test_a_name_that_the_scheduler_lacks(
    part: str, make: Make, profiled: Make, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All that is reached through it is named; vLLM serves, where need be with the name restored.

    Instances lose it when vLLM's constructor is through, and so do their classes.
    """
    caplog.set_level(logging.INFO)
    taken: list[tuple[dict[str, Any], Any]] = []
    *way, name = part.split(".")
    with pytest.MonkeyPatch.context() as gone:

        class Lacking(Scheduler):  # type: ignore[misc]  # vLLM ships no types
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                owner: Any = self
                for step in way:
                    owner = getattr(owner, step)
                # Of itself only what is vLLM's: what we add must not pass for it.
                take_from_class(gone, type(owner) if way else Lacking, name)
                if name in vars(owner):
                    taken.append((vars(owner), vars(owner).pop(name)))

        vllm_does_without = can_serve(make, Lacking)
        scheduler = profiled(Lacking)
        paths = [path for path in OF_SCHEDULER if path == part or path.startswith(part + ".")]
        check_off(caplog, scheduler, [f"Lacking.{path}" for path in paths], log)
        if vllm_does_without:
            assert serve(scheduler) == 3
    for attributes, value in taken:
        attributes[name] = value
    assert scheduler.schedule.__func__ is Scheduler.schedule
    assert scheduler.update_from_output.__func__ is Scheduler.update_from_output
    assert serve(scheduler) == 3
    scheduler.shutdown()
    assert not log.exists()


def test_with_every_name_there_profiling_is_on(
    profiled: Make, log: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above would show nothing; on a tested version there is no warning."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(vllm, "__version__", ".".join(map(str, vllm_binding.NEWEST_TESTED)))
    scheduler = profiled(Scheduler)
    assert serve(scheduler) == 3
    scheduler.shutdown()
    (records,) = read(log)
    assert [record.num_generated_tokens for record in records] == [1, 1, 1]
    assert said(caplog, logging.ERROR) == said(caplog, logging.WARNING) == []


@pytest.mark.parametrize("version", ["0.99.1", "1.0.0rc1", "0.1.dev7+gabc", "nightly"])
def test_an_unknown_version_that_has_all_names_is_profiled_with_one_warning(
    version: str,
    profiled: Make,
    log: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line names the version and those that were tested."""
    monkeypatch.setattr(vllm, "__version__", version)
    scheduler = profiled(Scheduler)
    assert serve(scheduler) == 3
    scheduler.shutdown()
    (records,) = read(log)
    assert len(records) == 3
    assert said(caplog, logging.WARNING) == [version_warning(version)]
    assert f"vLLM {version} is not among the tested versions (0.27 to " in caplog.text
    assert said(caplog, logging.ERROR) == []


def test_arguments_that_only_a_scheduler_of_the_users_knows_reach_it(
    profiled: Make, log: Path
) -> None:
    """By position and by keyword, also where all of vLLM's own come by keyword."""
    seen: list[Any] = []

    class Users(Scheduler):  # type: ignore[misc]  # vLLM ships no types
        def schedule(self, throttle: bool = False, *more: Any, **options: Any) -> Any:  # noqa: FBT001, FBT002 - as vLLM has it
            seen.append((more, options))
            return super().schedule()

        def update_from_output(self, *args: Any, mark: str = "", **kwargs: Any) -> Any:
            seen.append(mark)
            return super().update_from_output(*args, **kwargs)

    scheduler = profiled(Users)
    scheduler.add_request(make_request([5] * 20, 2))
    for number in range(2):
        output = scheduler.schedule(False, number, tag="ours")  # noqa: FBT003 - as vLLM has it
        result = model_output(output, [[7]])
        if number:
            scheduler.update_from_output(output, result, mark="second")
        else:
            scheduler.update_from_output(
                model_runner_output=result, scheduler_output=output, mark="first"
            )
    assert seen == [((0,), {"tag": "ours"}), "first", ((1,), {"tag": "ours"}), "second"]
    scheduler.shutdown()
    (records,) = read(log)
    assert [record.num_generated_tokens for record in records] == [1, 1]


def test_the_declared_versions_agree() -> None:
    """The package asks for the oldest tested version, and `make setup` installs a tested one."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = ".".join(map(str, vllm_binding.OLDEST_TESTED))
    assert pyproject["project"]["optional-dependencies"]["vllm"] == [f"vllm>={oldest}"]
    setup = (ROOT / "tools/setup.sh").read_text(encoding="utf-8")
    pinned = re.search(r"^vllm_version=(.+)$", setup, re.MULTILINE)
    assert pinned
    assert version_warning(pinned[1]) is None


def test_the_matrix_takes_what_is_declared_and_all_that_is_newer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Releases of the CPU build, and a newer release that has no CPU build yet."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    matrix = import_module("matrix")
    cpu = ["0.33.0", "0.9.2", "0.27.1", "0.27.0", "0.26.9", "0.12.0.post2", "0.31.0rc1"]
    assert matrix.chosen(cpu, []) == (["0.27.0", "0.27.1", "0.33.0"], None)
    assert matrix.chosen(cpu, ["0.33.0", "0.5.3.post1"])[1] is None
    assert matrix.chosen(cpu, ["0.35.0", "0.33.1"])[1] == "0.35.0"
