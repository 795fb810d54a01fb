"""vLLM's real scheduler without a model: for the benchmark and for tests of any order of steps."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from vllm import SamplingParams
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BLOCK_SIZE", "make_request", "make_scheduler", "model_output"]

BLOCK_SIZE = 16

init_none_hash(sha256)
_hash_blocks = get_request_block_hasher(BLOCK_SIZE, sha256)
_numbers = itertools.count()


def make_scheduler(
    model: Path,
    *,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 256,
    num_blocks: int = 1000,
    enable_prefix_caching: bool = True,
    async_scheduling: bool = False,
    num_speculative_tokens: int = 0,
    policy: str = "fcfs",
    log_stats: bool = False,
    max_model_len: int = 2048,
    cls: Any = None,
) -> Any:
    """Make the scheduler that an engine of that configuration would have, or one of `cls`."""
    model_config = ModelConfig(
        model=str(model), dtype="float32", seed=0, max_model_len=max_model_len, enforce_eager=True
    )
    scheduler_config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        is_encoder_decoder=False,
        # vLLM's own check allows n-gram drafts with synchronous scheduling only; its scheduler for
        # asynchronous scheduling takes any drafts.
        async_scheduling=async_scheduling and not num_speculative_tokens,
        policy=policy,
    )
    cache_config = CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=enable_prefix_caching)
    speculative = None
    if num_speculative_tokens:
        speculative = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=num_speculative_tokens,
            prompt_lookup_max=3,
            target_model_config=model_config,
            target_parallel_config=ParallelConfig(),
        )
    config = VllmConfig(
        model_config=model_config,
        scheduler_config=scheduler_config,
        cache_config=cache_config,
        parallel_config=ParallelConfig(),
        device_config=DeviceConfig("cpu"),
        speculative_config=speculative,
    )
    # The CPU platform switches it off as it makes the configuration.
    config.scheduler_config.async_scheduling = async_scheduling
    config.cache_config.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=4, head_size=32, dtype=torch.float32
    )
    kv_cache_config = KVCacheConfig(
        num_blocks=num_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    cls = cls or (AsyncScheduler if async_scheduling else Scheduler)
    return cls(
        vllm_config=config,
        kv_cache_config=kv_cache_config,
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
        log_stats=log_stats,
    )


def make_request(prompt: list[int], max_tokens: int, **options: Any) -> Request:
    """Make a request as the engine core does."""
    parameters = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    parameters.update_from_generation_config({}, eos_token_id=2)
    return Request(
        request_id=f"request-{next(_numbers)}",
        prompt_token_ids=prompt,
        sampling_params=parameters,
        pooling_params=None,
        block_hasher=_hash_blocks,
        **options,
    )


def model_output(output: Any, sampled: list[list[int]]) -> ModelRunnerOutput:
    """Return what a model would for the batch `output`, given each request's sampled tokens."""
    ids = list(output.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={req_id: index for index, req_id in enumerate(ids)},
        sampled_token_ids=sampled,
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )
