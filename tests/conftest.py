"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from sched_profiler import BatchRecord
from sched_profiler.testing import make_record

if os.environ.get("PROCESSES_WITHOUT_COVERAGE"):
    # What coverage tells the processes that the tests start.
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)

# A machine that is busy is slow now and then: no test may fail of that.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# For `make fuzz`.
settings.register_profile("long", deadline=None, max_examples=20_000)
settings.register_profile("histories", deadline=None, max_examples=5_000)


LANES = 2


def lane_of(path: Path) -> int:
    """Return the lane of a file of tests: engines, or all others and what makes both as long."""
    return 1 if path.parent.name == "engines" and path.name != "test_vllm_offline.py" else 2


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take a lane, for `tools/tests.py`."""
    parser.addoption("--lane", type=int, help=f"run the tests of this lane only, 1 to {LANES}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is in other lanes."""
    lane = config.getoption("--lane")
    if lane is not None:
        others = [item for item in items if lane_of(item.path) != lane]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if lane_of(item.path) == lane]


@pytest.fixture
def record() -> BatchRecord:
    """Return one batch of a prefill chunk and two decodes."""
    return make_record(
        5, timestamp=1_700_000_000.25, model_run_duration_ms=10.0, total_step_duration_ms=10.5
    )


@pytest.fixture
def memory() -> Iterator[Any]:
    """Return an empty store in the memory of this process."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()
