"""The hook in C is there, is safe, and frees what it takes; that it is right the others show."""

from __future__ import annotations

import gc
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from machine import c_compiler, lacks
from test_vllm_probe import BlockedSink, Life
from tiny_model import make_tiny_model

from sched_profiler.engines import vllm_probe
from sched_profiler.engines.vllm_hook import HOOKS

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Expect the hook wherever it could be built."""
    if c_compiler() is None:
        lacks("there is no C compiler on this machine")
    assert "c" in HOOKS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model: the scheduler reads its configuration."""
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def arguments(**changes: Any) -> dict[str, Any]:
    """Return what a hook is made of, of which nothing is used."""
    names = (
        "account inner_schedule inner_update scheduler waiting also_waiting free_blocks ids"
        " previous carried stamp_name stamp_clock now length"
    )
    flags = dict.fromkeys(("has_workers", "has_request_ids", "reads_system_clock"), False)
    containers = {"watched": {}, "queue": deque(), "pending": deque()}
    return {**dict.fromkeys(names.split()), **containers, **flags, **changes}


def growth(tiny: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return blocks of memory, and references to None, that 3000 steps leave behind."""
    monkeypatch.setattr(vllm_probe, "HOOKS", {name: HOOKS[name]})
    sink = BlockedSink()
    sink.go_on.set()
    life = Life(tiny, sink)
    marks = []
    for number in range(4001):
        life.step()
        if number in {1000, 4000}:
            life.profiler.flush()
            gc.collect()
            marks.append((sys.getallocatedblocks(), sys.getrefcount(None)))
    life.profiler.close()
    (blocks, nones), (blocks_then, nones_then) = marks
    return blocks_then - blocks, nones_then - nones


def test_what_c_takes_it_gives_back(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves what the hook in Python does: what vLLM itself keeps of the same history."""
    growth(tiny, "python", monkeypatch)  # what is made once is made
    blocks, nones = growth(tiny, "python", monkeypatch)
    blocks_of_c, nones_of_c = growth(tiny, "c", monkeypatch)
    # One block, or one None, lost in each step would be 3000.
    assert abs(blocks_of_c - blocks) < 1000
    assert abs(nones_of_c - nones) < 1000


@pytest.mark.parametrize(
    "changes", [{"queue": []}, {"pending": []}, {"watched": None}, {"room": 0}]
)
def test_a_hook_is_made_of_what_it_can_use_without_asking(changes: dict[str, Any]) -> None:
    """Nothing of it is looked at again in a step."""
    HOOKS["c"](**arguments())
    with pytest.raises(TypeError):
        HOOKS["c"](**arguments(**changes))


@pytest.mark.parametrize("method", ["schedule", "update_from_output"])
def test_a_hook_that_was_never_made_says_so(method: str) -> None:
    """An object without an account is one that the garbage collector is about to free."""
    hook = HOOKS["c"].__new__(HOOKS["c"])
    with pytest.raises(RuntimeError, match="this hook is gone"):
        getattr(hook, method)()


@pytest.mark.parametrize(
    ("name", "value"), [("pending", []), ("pending", 1), ("queue", []), ("watched", {})]
)
def test_what_a_hook_could_not_use_cannot_be_set(name: str, value: object) -> None:
    """Nor can anything be taken away from it."""
    hook = HOOKS["c"](**arguments())
    with pytest.raises((TypeError, AttributeError)):
        setattr(hook, name, value)
    for member in ("account", "inner_update", "pending", "previous", "room"):
        with pytest.raises((TypeError, AttributeError)):
            delattr(hook, member)
    hook.pending = None
    assert hook.pending is None
    with pytest.raises(TypeError):
        HOOKS["c"].__new__(HOOKS["c"]).inner_update = 1
