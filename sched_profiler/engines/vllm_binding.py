"""What the adapter needs of vLLM, named in one place and checked before it is used.

vLLM promises nothing about these names. A version that lacks one of them is told which, and runs
without profiling.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

__all__ = [
    "NEWEST_TESTED",
    "OLDEST_TESTED",
    "missing_for_request_trace",
    "missing_names",
    "missing_of_vllm",
    "version_warning",
]

OLDEST_TESTED, NEWEST_TESTED = (0, 27), (0, 32)
"""The vLLM versions that `make matrix` runs, both included."""

OF_VLLM = {
    "vllm.config.scheduler:SchedulerConfig": ("get_scheduler_cls",),
    "vllm.v1.outputs:ModelRunnerOutput": (),
}
"""What is patched, as `module:object`, with the names on it; needed before a scheduler is made."""

OF_CLASSES = {
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "finished_req_ids",
        "num_scheduled_tokens",
        "preempted_req_ids",
        "scheduled_cached_reqs",
        "scheduled_new_reqs",
        "scheduled_spec_decode_tokens",
        "total_num_scheduled_tokens",
    ),
    "vllm.v1.core.sched.output:NewRequestData": ("num_computed_tokens", "req_id"),
    "vllm.v1.core.sched.output:CachedRequestData": ("num_computed_tokens", "resumed_req_ids"),
    "vllm.v1.engine:EngineCoreOutputs": ("outputs",),
    "vllm.v1.engine:EngineCoreOutput": ("new_token_ids",),
    "vllm.v1.outputs:ModelRunnerOutput": ("req_id_to_index", "sampled_token_ids"),
    "vllm.v1.request:Request": (
        "drop_stale_output",
        "is_finished",
        "is_prefill_chunk",
        "num_computed_tokens",
        "num_output_tokens",
        "num_stale_output_tokens",
        "num_tokens",
        "streaming_queue",
    ),
}
"""Names by class, as `module:class`."""

OF_SCHEDULER = (
    "get_request_counts",
    "kv_cache_manager.block_pool.free_block_queue.num_free_blocks",
    "kv_cache_manager.block_pool.num_gpu_blocks",
    "max_num_scheduled_tokens",
    "requests",
    "running",
    "schedule",
    "shutdown",
    "update_from_output",
    "vllm_config.parallel_config.data_parallel_rank",
    "vllm_config.parallel_config.distributed_executor_backend",
    "vllm_config.speculative_config",
)
"""Names of a scheduler that is already made."""

OF_SCHEDULER_FOR_TRACE = ("_free_request", "add_request")
OF_CLASSES_FOR_TRACE: dict[str, tuple[str, ...]] = {
    "vllm.v1.request:Request": ("num_preemptions", "num_prompt_tokens", "request_id", "status"),
}
"""What a request trace needs as well."""


def missing_names(scheduler: Any) -> list[str]:
    """Return what the adapter needs and this vLLM, or this scheduler, does not have."""
    return _missing_of(scheduler, OF_SCHEDULER) + _missing(OF_CLASSES)


def missing_for_request_trace(scheduler: Any) -> list[str]:
    """Return what a request trace needs as well and is not there."""
    return _missing_of(scheduler, OF_SCHEDULER_FOR_TRACE) + _missing(OF_CLASSES_FOR_TRACE)


def _missing_of(scheduler: Any, paths: tuple[str, ...]) -> list[str]:
    missing = []
    for path in paths:
        owner: Any = scheduler
        for name in path.split("."):
            if not hasattr(owner, name):
                missing.append(f"{type(scheduler).__name__}.{path}")
                break
            owner = getattr(owner, name)
    return missing


def missing_of_vllm() -> list[str]:
    """Return what the adapter patches and this vLLM does not have."""
    return _missing(OF_VLLM)


def _missing(names_by_path: dict[str, tuple[str, ...]]) -> list[str]:
    missing = []
    for path, names in names_by_path.items():
        module, _, owner_name = path.partition(":")
        try:
            owner = getattr(import_module(module), owner_name)
        except (ImportError, AttributeError):
            missing.append(f"{module}.{owner_name}")
            continue
        missing += [f"{owner_name}.{name}" for name in names if name not in _names_of(owner)]
    return missing


def _names_of(cls: type) -> set[str]:
    """Return the names that an instance of a class has, as far as the class tells."""
    names = set(dir(cls)) | set(getattr(cls, "__struct_fields__", ()))
    if dataclasses.is_dataclass(cls):
        return names | {field.name for field in dataclasses.fields(cls)}
    # What a constructor assigns stands among the names of its code.
    code = getattr(vars(cls).get("__init__"), "__code__", None)
    return names | set(code.co_names if code else ())


def version_warning(version: str) -> str | None:
    """Return what to say of a vLLM version that was not tested; None for one that was."""
    release = tuple(int(part) for part in version.split(".", maxsplit=2)[:2] if part.isdigit())
    if OLDEST_TESTED <= release <= NEWEST_TESTED:
        return None
    oldest, newest = (".".join(map(str, v)) for v in (OLDEST_TESTED, NEWEST_TESTED))
    return (
        f"vLLM {version} is not among the tested versions ({oldest} to {newest}); it has all that "
        "is needed, so profiling is on"
    )
