"""vLLM's own scheduler without a model, for replays: it runs wherever vLLM can be imported."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sched_profiler.analysis.replay import Plan
from sched_profiler.errors import SchedProfilerError, how_to_install

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sched_profiler.analysis.arrivals import Arrival
    from sched_profiler.analysis.replay import EngineSettings

__all__ = ["VllmReplayScheduler", "require_vllm"]

_SHARED_TOKEN = 1
_OWN_TOKENS = 10
"""A request's own tokens are its number and this: no other request begins like it."""


def require_vllm() -> str:
    """Return vLLM's version.

    Raises:
        SchedProfilerError: if it is not installed, or cannot be imported.
    """
    # It says much that nobody asked for here.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        import vllm  # noqa: PLC0415 - heavy, and needed only here
        from vllm.v1.core.sched import scheduler  # noqa: F401, PLC0415 - likewise
    except Exception as error:
        raise SchedProfilerError(
            "a replay needs vLLM, whose scheduler it runs, and vLLM cannot be imported here "
            f"({error}); run it where vLLM is installed, or: {how_to_install('vllm')}"
        ) from error
    version: str = vllm.__version__
    return version


def _reason(error: Exception) -> str:
    """Return what vLLM says; what checks its settings would repeat them, and add a link."""
    from pydantic import ValidationError  # noqa: PLC0415 - comes with vLLM

    if isinstance(error, ValidationError):
        return "; ".join(one["msg"] for one in error.errors())
    return str(error)


class VllmReplayScheduler:
    """The scheduler that an engine with these settings would have.

    Who shares a prefix with whom is not known of a trace: all requests share one, each as much of
    it as the prefix cache held for it.
    """

    def __init__(self, settings: EngineSettings, *, num_shared_tokens: int = 0) -> None:
        """Make a scheduler; its prefix cache holds the first `num_shared_tokens` of all prompts.

        Raises:
            SchedProfilerError: if vLLM refuses the settings, with what it says.
        """
        try:
            self._scheduler = _make_scheduler(settings)
        except Exception as error:
            raise SchedProfilerError(
                f"vLLM refuses max_num_batched_tokens={settings.max_num_batched_tokens}, "
                f"max_num_seqs={settings.max_num_seqs}: {_reason(error)}; give other limits"
            ) from error
        self._hasher = _block_hasher(settings.block_size)
        pool = self._scheduler.kv_cache_manager.block_pool
        self._free_blocks = pool.free_block_queue
        # One block is vLLM's null block.
        self._num_blocks = pool.num_gpu_blocks - 1
        self._numbers: dict[str, int] = {}
        self._prefilling: dict[str, Any] = {}
        if settings.enable_prefix_caching and num_shared_tokens:
            self._warm_up(num_shared_tokens)

    def add(self, number: int, arrival: Arrival) -> None:
        """Take a request in."""
        own = arrival.num_prompt_tokens - arrival.num_cached_tokens
        prompt = [_SHARED_TOKEN] * arrival.num_cached_tokens + [_OWN_TOKENS + number] * own
        self._add(number, prompt, arrival.num_output_tokens)

    def has_requests(self) -> bool:
        """Tell whether there is somebody to schedule, now or when a result came."""
        return bool(self._scheduler.has_unfinished_requests())

    def schedule(self) -> tuple[Plan, Any]:
        """Form a batch; it may be empty. Return it and what stands for it."""
        scheduler = self._scheduler
        output = scheduler.schedule()
        requests, chunks = scheduler.requests, output.num_scheduled_tokens
        prefilling = self._prefilling
        new_context = num_cached = 0
        for data in output.scheduled_new_reqs:
            request = requests[data.req_id]
            new_context += data.num_computed_tokens
            if not request.num_preemptions:
                num_cached += data.num_computed_tokens
            prefilling[data.req_id] = request
        for req_id in output.scheduled_cached_reqs.resumed_req_ids:
            prefilling[req_id] = requests[req_id]
        prefill, prefill_context = [], 0
        for req_id, request in list(prefilling.items()):
            chunk = chunks.get(req_id)
            if chunk is None:
                continue
            computed = request.num_computed_tokens - chunk
            # After a preemption only the newest token may be left to compute: that is a decode.
            if request.num_output_tokens == 0 or request.num_tokens - computed > 1:
                prefill.append(chunk)
                prefill_context += computed
            if not request.is_prefill_chunk:
                del prefilling[req_id]
        for req_id in output.preempted_req_ids or ():
            prefilling.pop(req_id, None)
        context = sum(output.scheduled_cached_reqs.num_computed_tokens) + new_context
        num_running, num_waiting = scheduler.get_request_counts()
        # Read now: with batches in flight, the next schedule() changes it.
        sampled = [[] if requests[req_id].is_prefill_chunk else [0] for req_id in chunks]
        plan = Plan(
            prefill_chunk_sizes=prefill,
            decode_tokens=output.total_num_scheduled_tokens - sum(prefill),
            prefill_context_tokens=prefill_context,
            decode_context_tokens=context - prefill_context,
            num_reqs=len(chunks),
            num_waiting_reqs=num_waiting,
            num_running_reqs=num_running,
            num_preempted_reqs=len(output.preempted_req_ids or ()),
            num_cached_tokens=num_cached,
            kv_cache_usage=1 - self._free_blocks.num_free_blocks / self._num_blocks,
        )
        return plan, (output, sampled)

    def take_result(self, batch: Any) -> Iterable[tuple[int, bool]]:
        """Take in that a batch ran; return who got a token, and whether it was the last one."""
        output, sampled = batch
        told = self._scheduler.update_from_output(output, _model_output(output, sampled))
        got = []
        for outputs in told.values():
            for one in outputs.outputs:
                is_last = one.finish_reason is not None
                number = self._numbers[one.request_id]
                if one.new_token_ids:
                    got.append((number, is_last))
                if is_last:
                    del self._numbers[one.request_id]
        return got

    def _add(self, number: int, prompt: list[int], num_output_tokens: int) -> None:
        from vllm import SamplingParams  # noqa: PLC0415 - see require_vllm
        from vllm.v1.request import Request  # noqa: PLC0415

        parameters = SamplingParams(max_tokens=num_output_tokens, ignore_eos=True)
        # As the API server does; without it the scheduler looks for a token that ends the answer.
        parameters.update_from_generation_config({}, None)
        req_id = f"{number}"
        self._numbers[req_id] = number
        self._scheduler.add_request(
            Request(
                request_id=req_id,
                prompt_token_ids=prompt,
                sampling_params=parameters,
                pooling_params=None,
                block_hasher=self._hasher,
            )
        )

    def _warm_up(self, num_tokens: int) -> None:
        """Compute a prompt once; where the cache has no room for it, requests do without."""
        room = self._num_blocks * self._scheduler.block_size
        if num_tokens + 1 >= room:
            return
        self._add(-1, [_SHARED_TOKEN] * num_tokens + [0], 1)
        while self.has_requests():
            self.take_result(self.schedule()[1])


def _make_scheduler(settings: EngineSettings) -> Any:
    import torch  # noqa: PLC0415 - vLLM brings it; see require_vllm
    from vllm import config  # noqa: PLC0415
    from vllm.utils.hashing import sha256  # noqa: PLC0415
    from vllm.v1.core.kv_cache_utils import init_none_hash  # noqa: PLC0415
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: PLC0415
    from vllm.v1.core.sched.scheduler import Scheduler  # noqa: PLC0415
    from vllm.v1.kv_cache_interface import (  # noqa: PLC0415
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
    )
    from vllm.v1.structured_output import StructuredOutputManager  # noqa: PLC0415

    init_none_hash(sha256)
    with tempfile.TemporaryDirectory(prefix="sched-profiler-") as folder:
        # vLLM reads the lengths that a model allows from its files; nothing else of it matters.
        Path(folder, "config.json").write_text(json.dumps(_model(settings.max_model_len)))
        model_config = config.ModelConfig(
            model=folder,
            tokenizer=folder,
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=settings.max_model_len,
            enforce_eager=True,
        )
        scheduler_config = config.SchedulerConfig(
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=settings.max_model_len,
            long_prefill_token_threshold=settings.long_prefill_token_threshold,
            enable_chunked_prefill=settings.enable_chunked_prefill,
            is_encoder_decoder=False,
            async_scheduling=settings.async_scheduling,
            policy=settings.scheduling_policy,
        )
        vllm_config = config.VllmConfig(
            model_config=model_config,
            scheduler_config=scheduler_config,
            cache_config=config.CacheConfig(
                block_size=settings.block_size,
                enable_prefix_caching=settings.enable_prefix_caching,
            ),
            parallel_config=config.ParallelConfig(),
            device_config=config.DeviceConfig("cpu"),
        )
        # A platform may have its own mind about these; the manifest says what the engine had.
        vllm_config.scheduler_config.async_scheduling = settings.async_scheduling
        vllm_config.cache_config.num_gpu_blocks = settings.num_blocks
        spec = FullAttentionSpec(
            block_size=settings.block_size, num_kv_heads=1, head_size=32, dtype=torch.float32
        )
        return (AsyncScheduler if settings.async_scheduling else Scheduler)(
            vllm_config=vllm_config,
            kv_cache_config=KVCacheConfig(
                num_blocks=settings.num_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(vllm_config),
            block_size=settings.block_size,
            log_stats=False,
        )


def _block_hasher(block_size: int) -> Any:
    from vllm.utils.hashing import sha256  # noqa: PLC0415 - see require_vllm
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher  # noqa: PLC0415

    return get_request_block_hasher(block_size, sha256)


def _model_output(output: Any, sampled: list[list[int]]) -> Any:
    from vllm.v1.outputs import ModelRunnerOutput  # noqa: PLC0415 - see require_vllm

    ids = list(output.num_scheduled_tokens)
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={req_id: index for index, req_id in enumerate(ids)},
        sampled_token_ids=sampled,
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def _model(max_model_len: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": max_model_len,
    }
