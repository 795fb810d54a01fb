"""What the adapter needs of vLLM, named in one place and checked before it is used.

vLLM promises nothing about these names. A version that lacks one of them is told which, and runs
without profiling.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

__all__ = ["NEWEST_TESTED", "OLDEST_TESTED", "missing_names", "version_warning"]

OLDEST_TESTED, NEWEST_TESTED = (0, 27), (0, 32)
"""The vLLM versions that `make matrix` runs, both included."""

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


def missing_names(scheduler: Any) -> list[str]:
    """Return what the adapter needs and this vLLM, or this scheduler, does not have."""
    missing = []
    for path in OF_SCHEDULER:
        owner: Any = scheduler
        for name in path.split("."):
            if not hasattr(owner, name):
                missing.append(f"{type(scheduler).__name__}.{path}")
                break
            owner = getattr(owner, name)
    for path, names in OF_CLASSES.items():
        module, _, class_name = path.partition(":")
        try:
            cls = getattr(import_module(module), class_name)
        except (ImportError, AttributeError):
            missing.append(f"{module}.{class_name}")
            continue
        missing += [f"{class_name}.{name}" for name in names if name not in _names_of(cls)]
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
