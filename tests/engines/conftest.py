"""Real vLLM engines, each started once for all the tests that look at what it left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_vllm import Faults, faulty, told
from machine import c_compiler, lacks, mounted
from real_vllm import ORACLE_MODES, Run, run_offline
from tiny_model import make_tiny_model

from sched_profiler.engines import vllm_probe
from sched_profiler.engines.vllm_hook import HOOKS


@pytest.fixture(scope="module", params=["python", "c"])
def every_hook(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the tests of a module through each of the hooks."""
    name: str = request.param
    if name not in HOOKS and c_compiler() is None:
        lacks("there is no C compiler on this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_probe, "HOOKS", {name: HOOKS[name]})
        yield name


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model of random weights."""
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def in_process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return what engines in one process left: synchronous, a user's scheduler, a failing model."""
    return run_offline(
        model,
        tmp_path_factory.mktemp("in_process"),
        ["synchronous", "users_scheduler", "failing_model"],
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        SCHED_PROFILER_REQUEST_TRACE="1",
    )


@pytest.fixture(scope="session")
def asynchronous(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return what an asynchronously scheduling engine core in its own process left."""
    return run_offline(
        model,
        tmp_path_factory.mktemp("asynchronous"),
        ["asynchronous"],
        SCHED_PROFILER_REQUEST_TRACE="1",
    )


@pytest.fixture(scope="session")
def modes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return what engines with the oracle inside left, one for each of `ORACLE_MODES`."""
    return run_offline(
        model,
        tmp_path_factory.mktemp("modes"),
        list(ORACLE_MODES),
        timeout=580,
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        SCHED_PROFILER_REQUEST_IDS="1",
        # On few cores waiting threads take the time of working ones, and two workers have no room.
        OMP_NUM_THREADS="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
    )


@pytest.fixture(scope="session")
def faults(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """Let one engine meet them one after the other."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("uploaded", "restarted-uploaded", "seaweed"):
        (folder / name).mkdir()
    with (
        mounted(folder / "full", "size=16k") as has_disks,
        mounted(folder / "freed", "size=64k"),
        mounted(folder / "read-only", "ro"),
    ):
        # Where disks are missing, the script leaves those faults out.
        if not has_disks:
            (folder / "full").rmdir()
        with faulty(model, folder, "in_process") as process:
            assert process.wait(250) == 0, (folder / "printed").read_text()[-5000:]
        lines = told(folder)
        yield Faults(
            folder,
            {line["fault"]: line["tokens"] for line in lines if "fault" in line},
            next(line["unprofiled"] for line in lines if "unprofiled" in line),
            next(line["times"] for line in lines if "times" in line),
            (folder / "printed").read_text(),
        )
