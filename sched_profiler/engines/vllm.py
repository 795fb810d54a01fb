"""Profiles vLLM's scheduler without a change to vLLM.

vLLM asks `SchedulerConfig.get_scheduler_cls` which scheduler to build. That method is wrapped: it
returns a subclass of whatever class vLLM or the user chose, and the subclass measures around
`schedule` and `update_from_output`. This is the only module that knows vLLM's names.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sched_profiler.errors import SettingError
from sched_profiler.profiler import BatchProfiler
from sched_profiler.settings import CONSOLE, ENABLE, LOG, Settings
from sched_profiler.sinks import ConsoleSink, JsonlSink, TeeSink

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["attach", "contents_of", "install", "profiled_class"]

logger = logging.getLogger("sched_profiler")


def install() -> None:
    """Make vLLM build profiled schedulers in this process; on any obstacle say so and stay off."""
    from vllm.config.scheduler import SchedulerConfig  # noqa: PLC0415 - vLLM is there when it calls

    _log_where_vllm_logs()
    try:
        settings = Settings.from_environ()
    except SettingError as error:
        logger.error("scheduler profiling is off: %s", error)  # noqa: TRY400 - the user's typo
        return
    choose = getattr(SchedulerConfig, "get_scheduler_cls", None)
    if choose is None:
        logger.error("scheduler profiling is off: this vLLM has no %s", "get_scheduler_cls")
        return
    if hasattr(choose, "__wrapped__"):
        return  # vLLM may load its plugins more than once

    @functools.wraps(choose)
    def get_scheduler_cls(*args: Any, **kwargs: Any) -> type:
        return profiled_class(choose(*args, **kwargs), settings)

    SchedulerConfig.get_scheduler_cls = get_scheduler_cls
    _declare_variables()


@functools.cache
def profiled_class(base: type, settings: Settings) -> type:
    """Return a subclass of the scheduler class `base` whose instances profile themselves."""

    class ProfiledScheduler(base):  # type: ignore[misc]  # known only at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._sched_profiler_close: Callable[[], object] | None = None
            try:
                self._sched_profiler_close = _start(self, settings)
            except Exception:
                if settings.strict:
                    raise
                logger.exception("scheduler profiling is off: it could not be attached")

        def shutdown(self, *args: Any, **kwargs: Any) -> Any:
            if self._sched_profiler_close is not None:
                self._sched_profiler_close()
            return super().shutdown(*args, **kwargs)

    # In vLLM's log and error messages it is still the class that the user knows.
    ProfiledScheduler.__name__ = base.__name__
    ProfiledScheduler.__qualname__ = base.__qualname__
    ProfiledScheduler.__module__ = base.__module__
    return ProfiledScheduler


def _start(scheduler: Any, settings: Settings) -> Callable[[], object]:
    """Profile a scheduler as the settings ask; return what ends it."""
    log = Path(settings.log).absolute()
    file = JsonlSink(log)
    profiler = BatchProfiler(
        TeeSink(file, _console(settings), strict=settings.strict) if settings.console else file,
        dp_rank=_dp_rank(scheduler.vllm_config.parallel_config),
        token_budget=scheduler.max_num_scheduled_tokens,
        contents_of=contents_of,
        strict=settings.strict,
    )
    attach(scheduler, profiler, request_ids=settings.request_ids)
    logger.info("scheduler profiling is on: run %s goes to %s", profiler.run_id, log)
    return profiler.close


def _console(settings: Settings) -> ConsoleSink:
    handlers = logging.getLogger("vllm").handlers
    streams = [getattr(handler, "stream", None) for handler in handlers]
    return ConsoleSink(
        every=settings.console_every,
        print_line=logger.info,
        colour=any(stream is not None and stream.isatty() for stream in streams),
    )


def _dp_rank(parallel_config: Any) -> int:
    # With external load balancing vLLM resets data_parallel_rank to 0; the index keeps the truth.
    rank = getattr(parallel_config, "data_parallel_index", None)
    return parallel_config.data_parallel_rank if rank is None else rank  # type: ignore[no-any-return]


def attach(scheduler: Any, profiler: BatchProfiler, *, request_ids: bool = False) -> None:
    """Measure every batch of a vLLM scheduler into `profiler` (made with `contents_of`)."""
    probe = _Probe(scheduler, profiler, request_ids=request_ids)
    profiler.before_close = probe.give_up
    scheduler.schedule = probe.schedule
    scheduler.update_from_output = probe.update_from_output


class _Probe:
    """Sees every call of one scheduler; its methods run on the engine's thread.

    What a batch holds is worked out without a look at every request. Requests still in prefill are
    kept in a small dict, which new and resumed requests enter and which they leave with their last
    prefill chunk; all others are in decode, and when the tokens left equal the requests left,
    every decode chunk is 1. `num_computed_tokens` of a request has already moved on when
    `schedule` returns, so the value before the batch is that minus the chunk.
    """

    def __init__(self, scheduler: Any, profiler: BatchProfiler, *, request_ids: bool) -> None:
        self._scheduler = scheduler
        self._profiler = profiler
        self._request_ids = request_ids
        self._now = profiler.clock.monotonic_ns
        self._boundary = profiler.boundary
        self._schedule = scheduler.schedule
        self._update_from_output = scheduler.update_from_output
        self._pending: deque[_Pending] = deque()
        self._prefilling: dict[str, Any] = {}
        self._preempted: set[str] = set()
        self._num_preempted = 0
        self._num_finished = 0

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule as before; vLLM's own exceptions pass through."""
        began = self._now()
        output = self._schedule(*args, **kwargs)
        ended = self._now()
        self._boundary.guard(self._capture, output, began, ended)
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Take in a result as before; vLLM's own exceptions pass through."""
        result = self._now()
        returned = self._update_from_output(*args, **kwargs)
        updated = self._now()
        output = args[0] if args else kwargs["scheduler_output"]
        model_output = args[1] if len(args) > 1 else kwargs["model_runner_output"]
        self._boundary.guard(self._settle, output, model_output, returned, result, updated)
        return returned

    def give_up(self) -> None:
        """Record what never got a result: the batch that brought the engine down among them."""
        while self._pending:
            self._record_without_result(self._pending.popleft())

    def _capture(self, output: Any, began: int, ended: int) -> None:
        """Read what the next steps will change."""
        self._leave(output)
        if not output.total_num_scheduled_tokens:
            return
        running, waiting = self._scheduler.get_request_counts()
        contents = {
            "num_running_reqs": running,
            "num_waiting_reqs": waiting,
            "kv_cache_usage": self._scheduler.kv_cache_manager.usage,
            "num_preempted_reqs": self._num_preempted,
            "num_finished_reqs": self._num_finished,
            **self._enter(output),
            **self._phases(output),
        }
        self._num_preempted = self._num_finished = 0
        self._pending.append(
            _Pending(
                output, self._profiler.next_batch_id(), began, ended, len(self._pending), contents
            )
        )

    def _leave(self, output: Any) -> None:
        """Forget requests that finished, aborted or lost their KV cache since the last step."""
        for req_id in output.finished_req_ids:
            self._num_finished += 1
            self._prefilling.pop(req_id, None)
            self._preempted.discard(req_id)
        for req_id in output.preempted_req_ids or ():
            self._num_preempted += 1
            self._prefilling.pop(req_id, None)
            self._preempted.add(req_id)

    def _enter(self, output: Any) -> dict[str, Any]:
        """Let new and resumed requests in among those that prefill."""
        num_new = num_resumed = num_cached = 0
        for data in output.scheduled_new_reqs:
            # Model runner v2 is told of resumed requests as if they were new.
            if data.req_id in self._preempted:
                num_resumed += 1
            else:
                num_new += 1
                num_cached += data.num_computed_tokens
            self._begin_prefill(data.req_id)
        for req_id in output.scheduled_cached_reqs.resumed_req_ids:
            num_resumed += 1
            self._begin_prefill(req_id)
        return {
            "num_new_reqs": num_new,
            "num_resumed_reqs": num_resumed,
            "num_cached_tokens": num_cached,
        }

    def _begin_prefill(self, req_id: str) -> None:
        self._prefilling[req_id] = self._scheduler.requests[req_id]
        self._preempted.discard(req_id)

    def _phases(self, output: Any) -> dict[str, Any]:
        """Split the batch into prefill and decode."""
        chunks = output.num_scheduled_tokens
        prefill: dict[str, int] = {}
        prefill_context = 0
        for req_id, request in list(self._prefilling.items()):
            chunk = chunks.get(req_id)
            if chunk is None:
                continue
            computed = request.num_computed_tokens - chunk
            # After a preemption only the newest token may be left to compute: that is a decode.
            if request.num_output_tokens == 0 or request.num_tokens - computed > 1:
                prefill[req_id] = chunk
                prefill_context += computed
            if not request.is_prefill_chunk:
                del self._prefilling[req_id]
        num_decode = len(chunks) - len(prefill)
        decode: int | list[int] = num_decode
        if output.total_num_scheduled_tokens - sum(prefill.values()) != num_decode:
            decode = [chunk for req_id, chunk in chunks.items() if req_id not in prefill]
        contents = {
            "prefill_chunk_sizes": list(prefill.values()),
            "decode_chunk_sizes": decode,
            "prefill_context_tokens": prefill_context,
            "decode_context_tokens": sum(output.scheduled_cached_reqs.num_computed_tokens)
            + sum(data.num_computed_tokens for data in output.scheduled_new_reqs)
            - prefill_context,
            "num_draft_tokens": sum(map(len, output.scheduled_spec_decode_tokens.values())),
        }
        if self._request_ids:
            contents["request_ids"] = [*prefill, *(r for r in chunks if r not in prefill)]
        return contents

    def _settle(
        self, output: Any, model_output: Any, returned: Any, result: int, updated: int
    ) -> None:
        """Match a result to its batch, by the identity of the scheduler's output."""
        if not any(pending.output is output for pending in self._pending):
            return  # it had no tokens
        while (pending := self._pending.popleft()).output is not output:
            # Results come in the order of schedule(): this one will not come any more.
            self._record_without_result(pending)
        pending.contents["num_generated_tokens"] = sum(
            len(request_output.new_token_ids)
            for outputs in returned.values()
            for request_output in outputs.outputs
        )
        pending.contents["num_accepted_tokens"] = _num_accepted(output, model_output)
        self._profiler.measured(
            pending.batch_id,
            (pending.began, pending.ended, pending.ended, result, updated),
            pending.num_inflight,
            pending.contents,
        )

    def _record_without_result(self, pending: _Pending) -> None:
        self._profiler.measured(
            pending.batch_id,
            (pending.began, pending.ended, pending.ended, None, None),
            pending.num_inflight,
            pending.contents,
        )


class _Pending(NamedTuple):
    """A batch that is scheduled and has no result yet."""

    output: Any
    batch_id: int
    began: int
    ended: int
    num_inflight: int
    contents: dict[str, Any]


def _num_accepted(output: Any, model_output: Any) -> int:
    """Return how many draft tokens the model accepted: all it sampled but one per request."""
    accepted = 0
    sampled = model_output.sampled_token_ids
    for req_id in output.scheduled_spec_decode_tokens:
        num_sampled = len(sampled[model_output.req_id_to_index[req_id]]) if sampled else 0
        accepted += max(num_sampled - 1, 0)
    return accepted


def contents_of(contents: dict[str, Any]) -> dict[str, Any]:
    """Spell out, on the writer's thread, the decode chunks that are all 1."""
    decode = contents["decode_chunk_sizes"]
    return contents | {"decode_chunk_sizes": [1] * decode if isinstance(decode, int) else decode}


class _ThroughVllm(logging.Handler):
    """Passes our log on to vLLM's logger, which vLLM may configure later than it loads us."""

    def emit(self, record: logging.LogRecord) -> None:
        vllm_logger = logging.getLogger("vllm")
        if vllm_logger.isEnabledFor(record.levelno):
            vllm_logger.handle(record)


def _log_where_vllm_logs() -> None:
    """Let our messages appear where operators look, in vLLM's format and at vLLM's level."""
    if not any(isinstance(handler, _ThroughVllm) for handler in logger.handlers):
        logger.addHandler(_ThroughVllm())
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


def _declare_variables() -> None:
    """Keep vLLM from warning that it does not know our variables.

    They are known to vLLM only while it checks the environment: left in its list, they would
    become part of the key of its compile cache, and the first profiled start would compile anew.
    """
    try:
        from vllm import envs  # noqa: PLC0415 - vLLM is there when it calls us
        from vllm.platforms.interface import Platform  # noqa: PLC0415

        known = envs.environment_variables
        check = Platform.validate_environ.__func__
    except (ImportError, AttributeError):
        return  # a version that checks in another way: a warning does no harm

    @functools.wraps(check)
    def validate_environ(*args: Any, **kwargs: Any) -> Any:
        ours = [name for name in (ENABLE, LOG, CONSOLE) if name not in known]
        known.update((name, functools.partial(os.environ.get, name)) for name in ours)
        try:
            return check(*args, **kwargs)
        finally:
            for name in ours:
                del known[name]

    Platform.validate_environ = classmethod(validate_environ)
