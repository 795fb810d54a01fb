"""What vLLM's configuration says of a run; a stand-in for it, so no engine is needed."""

from __future__ import annotations

from types import SimpleNamespace

from sched_profiler import BatchProfiler, JsonlSink
from sched_profiler.engines.vllm import _facts


def config() -> SimpleNamespace:
    """Return the part of a `VllmConfig` that the adapter reads."""
    return SimpleNamespace(
        model_config=SimpleNamespace(model="/models/llama"),
        scheduler_config=SimpleNamespace(
            max_num_batched_tokens=8192,
            max_num_seqs=256,
            long_prefill_token_threshold=0,
            async_scheduling=True,
        ),
        cache_config=SimpleNamespace(block_size=16, num_gpu_blocks=1000),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=4
        ),
    )


def test_the_facts_of_a_run_come_from_the_configuration() -> None:
    """All that a manifest has a field for."""
    assert _facts(config(), "0.32.0") == {
        "engine": "vllm",
        "engine_version": "0.32.0",
        "model": "/models/llama",
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 256,
        "long_prefill_token_threshold": 0,
        "async_scheduling": True,
        "block_size": 16,
        "num_blocks": 1000,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 4,
    }


def test_what_another_vllm_has_in_another_form_is_left_out() -> None:
    """The manifest must never be what keeps profiling off."""
    changed = config()
    del changed.cache_config
    changed.model_config.model = object()
    changed.scheduler_config.async_scheduling = None
    changed.scheduler_config.max_num_seqs = "many"
    facts = _facts(changed, "9.9")
    assert not {"block_size", "model", "async_scheduling", "max_num_seqs"} & set(facts)
    BatchProfiler(JsonlSink("never"), facts=facts).close()
