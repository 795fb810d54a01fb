"""Profiles vLLM's scheduler without a change to vLLM.

vLLM asks `SchedulerConfig.get_scheduler_cls` which scheduler to build. That method is wrapped: it
returns a subclass of whatever class vLLM or the user chose, and the subclass measures around
`schedule` and `update_from_output`. The modules beside this one whose
names begin with `vllm_` are the only others that know vLLM's names.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from sched_profiler.engines.vllm_binding import (
    missing_for_request_trace,
    missing_names,
    missing_of_vllm,
    version_warning,
)
from sched_profiler.engines.vllm_contents import contents_of
from sched_profiler.engines.vllm_probe import Probe
from sched_profiler.engines.vllm_requests import RequestProbe
from sched_profiler.engines.vllm_stamp import stamp_results
from sched_profiler.errors import SettingError
from sched_profiler.manifest import RunFacts
from sched_profiler.messages import logger
from sched_profiler.profiler import BatchProfiler
from sched_profiler.settings import CONSOLE, ENABLE, LOG, Settings
from sched_profiler.sinks import factories
from sched_profiler.sinks.base import SinkContext
from sched_profiler.sinks.registry import find_sinks, make_sinks
from sched_profiler.sinks.tee import TeeSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.request_trace import RequestTrace

__all__ = ["install", "profiled_class"]


def install() -> None:
    """Make vLLM build profiled schedulers in this process; on any obstacle say so and stay off."""
    _log_where_vllm_logs()
    try:
        settings = Settings.from_environ()
        find_sinks(settings.sinks)
        _install(settings)
    except SettingError as error:
        logger.error("scheduler profiling is off: %s", error)  # noqa: TRY400 - the user's typo
    except Exception:
        # vLLM would not start.
        logger.exception("scheduler profiling is off: it could not be installed")


def _install(settings: Settings) -> None:
    if missing := missing_of_vllm():
        logger.error(
            "scheduler profiling is off: this vLLM lacks %s; upgrade sched-profiler",
            ", ".join(missing),
        )
        return
    from vllm.config.scheduler import SchedulerConfig  # noqa: PLC0415 - vLLM is there when it calls

    choose = SchedulerConfig.get_scheduler_cls
    if hasattr(choose, "sched_profiler"):
        return  # vLLM may load its plugins more than once

    @functools.wraps(choose)
    def get_scheduler_cls(*args: Any, **kwargs: Any) -> type:
        return profiled_class(choose(*args, **kwargs), settings)

    get_scheduler_cls.sched_profiler = True  # type: ignore[attr-defined]  # a mark for us
    SchedulerConfig.get_scheduler_cls = get_scheduler_cls
    stamp_results()
    try:
        _declare_variables()
    except Exception:
        logger.debug("vLLM does not let us declare our variables", exc_info=True)


@functools.cache
def profiled_class(base: type, settings: Settings) -> type:
    """Return a subclass of the scheduler class `base` whose instances profile themselves."""

    class ProfiledScheduler(base):  # type: ignore[misc]  # known only at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            try:
                if close := _start(self, settings):
                    _close_at_shutdown(self, close)
            except Exception:
                if settings.strict:
                    raise
                logger.exception("scheduler profiling is off: it could not be attached")

    # In vLLM's log and error messages it is still the class that the user knows.
    ProfiledScheduler.__name__ = base.__name__
    ProfiledScheduler.__qualname__ = base.__qualname__
    ProfiledScheduler.__module__ = base.__module__
    return ProfiledScheduler


def _start(scheduler: Any, settings: Settings) -> Callable[[], object] | None:
    """Profile a scheduler as the settings ask; return what ends it, or None if it cannot be."""
    import vllm  # noqa: PLC0415 - vLLM is there when it makes a scheduler

    if missing := missing_names(scheduler):
        logger.error(
            "scheduler profiling is off: this vLLM lacks %s; upgrade sched-profiler",
            ", ".join(missing),
        )
        return None
    dp_rank = _dp_rank(scheduler.vllm_config.parallel_config)
    context = SinkContext(
        settings=settings, dp_rank=dp_rank, print_line=logger.info, colour=_logs_to_terminal()
    )
    try:
        sinks = make_sinks(find_sinks(settings.sinks), context)
    except SettingError as error:
        logger.error("scheduler profiling is off: %s", error)  # noqa: TRY400 - the user's to mend
        return None
    facts = _facts(scheduler.vllm_config, vllm.__version__)
    # Whatever else keeps a manifest: the log is the one that nothing may hold up.
    first, *others = (sinks[name] for name in sorted(sinks, key=lambda name: name != "jsonl"))
    profiler = BatchProfiler(
        TeeSink(first, *others, strict=settings.strict) if others else first,
        dp_rank=dp_rank,
        token_budget=scheduler.max_num_scheduled_tokens,
        facts=facts,
        ends_at_signal=_is_killed_at_signal(scheduler.vllm_config),
        contents_of=contents_of(scheduler),
        strict=settings.strict,
    )
    trace = requests = None
    if settings.request_trace:
        trace = _request_trace(scheduler, profiler.run_id, facts, context)
        requests = RequestProbe(scheduler, trace) if trace is not None else None
    Probe(scheduler, profiler, request_ids=settings.request_ids).attach()
    if warning := version_warning(vllm.__version__):
        logger.warning("%s", warning)
    # Where the sink of the log writes to is known from here on.
    places = [getattr(sink, "shown", name) for name, sink in sinks.items()]
    logger.info("scheduler profiling is on: run %s goes to %s", profiler.run_id, ", ".join(places))
    if trace is None or requests is None:
        return profiler.close
    # Around the probe, whose times are then none of its own.
    requests.attach()
    return lambda: (trace.close(), profiler.close())


def _request_trace(
    scheduler: Any, run_id: str, facts: RunFacts, context: SinkContext
) -> RequestTrace | None:
    """Return what requests are traced into, or None if that cannot be."""
    # Needed only where it is asked for.
    from sched_profiler.request_trace import RequestTrace  # noqa: PLC0415

    if missing := missing_for_request_trace(scheduler):
        logger.error(
            "the request trace is off: this vLLM lacks %s; upgrade sched-profiler",
            ", ".join(missing),
        )
        return None
    try:
        sink = factories.request_trace(context)
    except SettingError as error:
        logger.error("the request trace is off: %s", error)  # noqa: TRY400 - the user's to mend
        return None
    return RequestTrace(
        sink,
        run_id=run_id,
        dp_rank=context.dp_rank,
        facts=facts,
        ends_at_signal=_is_killed_at_signal(scheduler.vllm_config),
        strict=context.settings.strict,
    )


def _facts(config: Any, version: str) -> RunFacts:
    """Return what vLLM's configuration says of the run; what this vLLM lacks is left out."""
    paths = {
        "model": "model_config.model",
        "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
        "max_num_seqs": "scheduler_config.max_num_seqs",
        "long_prefill_token_threshold": "scheduler_config.long_prefill_token_threshold",
        "max_model_len": "model_config.max_model_len",
        "enable_chunked_prefill": "scheduler_config.enable_chunked_prefill",
        "enable_prefix_caching": "cache_config.enable_prefix_caching",
        "scheduling_policy": "scheduler_config.policy",
        "async_scheduling": "scheduler_config.async_scheduling",
        "block_size": "cache_config.block_size",
        "num_blocks": "cache_config.num_gpu_blocks",
        "tensor_parallel_size": "parallel_config.tensor_parallel_size",
        "pipeline_parallel_size": "parallel_config.pipeline_parallel_size",
        "data_parallel_size": "parallel_config.data_parallel_size",
    }
    facts: dict[str, Any] = {"engine": "vllm", "engine_version": version}
    for name, path in paths.items():
        section, _, setting = path.partition(".")
        value = getattr(getattr(config, section, None), setting, None)
        # A later vLLM may put something else there.
        if type(value) is get_type_hints(RunFacts)[name]:
            facts[name] = value
    return cast("RunFacts", facts)


def _close_at_shutdown(scheduler: Any, close: Callable[[], object]) -> None:
    # Like the probe, on the instance: a method of the class would hide that vLLM's own is missing.
    shut_down = scheduler.shutdown

    def shutdown(*args: Any, **kwargs: Any) -> Any:
        close()
        return shut_down(*args, **kwargs)

    scheduler.shutdown = shutdown


def _is_killed_at_signal(config: Any) -> bool:
    """Tell whether Scheduler.shutdown will not be called.

    Unless told to drain its requests first, the API server kills its engine core in the very moment
    in which it asks it to end.
    """
    in_process_of_its_own = multiprocessing.parent_process() is not None
    return in_process_of_its_own and not getattr(config, "shutdown_timeout", 0)


def _logs_to_terminal() -> bool:
    handlers = logging.getLogger("vllm").handlers
    streams = [getattr(handler, "stream", None) for handler in handlers]
    return any(stream is not None and stream.isatty() for stream in streams)


def _dp_rank(parallel_config: Any) -> int:
    # With external load balancing vLLM resets data_parallel_rank to 0; the index keeps the truth.
    rank = getattr(parallel_config, "data_parallel_index", None)
    return parallel_config.data_parallel_rank if rank is None else rank  # type: ignore[no-any-return]


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
    from vllm import envs  # noqa: PLC0415 - vLLM is there when it calls us
    from vllm.platforms.interface import Platform  # noqa: PLC0415

    known = envs.environment_variables

    def knowing_ours(check: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(check)
        def validate_environ(*args: Any, **kwargs: Any) -> Any:
            ours = [name for name in (ENABLE, LOG, CONSOLE) if name not in known]
            known.update((name, functools.partial(os.environ.get, name)) for name in ours)
            try:
                return check(*args, **kwargs)
            finally:
                for name in ours:
                    del known[name]

        return validate_environ

    # A function of the module up to vLLM 0.30, a class method of the platform since 0.31.
    if hasattr(Platform, "validate_environ"):
        check = Platform.validate_environ.__func__
        Platform.validate_environ = classmethod(knowing_ours(check))
    elif hasattr(envs, "validate_environ"):
        envs.validate_environ = knowing_ours(envs.validate_environ)
