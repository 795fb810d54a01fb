"""One real engine in this process, which is profiled in one way after the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offline import engine, prompts
from vllm import SamplingParams

from sched_profiler import BatchProfiler
from sched_profiler.engines.vllm import _log_where_vllm_logs, _start
from sched_profiler.messages import logger
from sched_profiler.settings import Settings
from sched_profiler.store import Store

__all__ = [
    "LENGTHS",
    "MANY_TOKENS",
    "InProcess",
    "Profiling",
    "generate",
    "heard",
    "sampling",
    "uploading",
]

# All in one batch: where a prompt is cut, vLLM for the CPU knows no seed of a request.
LENGTHS = [5, 40, 90, 17, 29, 1, 64, 8]
MAX_TOKENS = 24
MANY_TOKENS = 300


def sampling(max_tokens: int, **options: Any) -> list[SamplingParams]:
    """Return how the requests are answered: each has its seed."""
    return [
        SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, temperature=1.0, seed=number, **options
        )
        for number in range(len(LENGTHS))
    ]


def generate(llm: Any, max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Generate from an empty prefix cache, and return the tokens."""
    llm.reset_prefix_cache()
    outputs = llm.generate(prompts(LENGTHS), sampling(max_tokens), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


class InProcess:
    """One engine, whose scheduler is profiled into one sink after the other."""

    def __init__(self, model: str) -> None:
        _log_where_vllm_logs()
        self.llm = engine(model)
        self._scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        self._closing: list[threading.Thread] = []

    def profile(self, log: str, *sinks: str, **settings: Any) -> Profiling:
        """Make a profiler; return the context in which it profiles the engine."""
        before = vars(self._scheduler).copy()
        asked = Settings(enabled=True, log=log, sinks=sinks or ("jsonl",), **settings)
        close: Any = _start(self._scheduler, asked)
        assert close is not None
        profiling = Profiling(self._scheduler, close.__self__, before)
        self._closing.append(threading.Thread(target=close))
        return profiling

    def finish(self) -> None:
        """Close all profilers, side by side: some sinks take all the time that they are given."""
        closing, self._closing = self._closing, []
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()


class Profiling:
    """Profiles a scheduler while it is entered, again and again.

    Attributes:
        profiler: what does so.
    """

    def __init__(self, scheduler: Any, profiler: BatchProfiler, before: dict[str, Any]) -> None:
        self.profiler = profiler
        self._scheduler = scheduler
        now = vars(scheduler)
        self._attached = {name: now[name] for name in now if name not in before}
        self.__exit__()

    def __enter__(self) -> BatchProfiler:
        vars(self._scheduler).update(self._attached)
        return self.profiler

    def __exit__(self, *_: object) -> None:
        for name in self._attached:
            delattr(self._scheduler, name)


@contextmanager
def heard(message: str) -> Iterator[threading.Event]:
    """Yield what is set when our log says so."""
    event = threading.Event()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if message in f"{record.getMessage()} {record.exc_text}":
                event.set()

    ear = Ear()
    logger.addHandler(ear)
    yield event
    logger.removeHandler(ear)


@contextmanager
def uploading(place: str = "") -> Iterator[threading.Event]:
    """Yield what is set when an upload begins, to a URL with this in it."""
    event = threading.Event()
    put = Store.put

    def put_and_tell(self: Store, file: Path, name: str) -> None:
        if place in self.url:
            event.set()
        put(self, file, name)

    Store.put = put_and_tell  # type: ignore[method-assign]
    yield event
    Store.put = put  # type: ignore[method-assign]
