"""What a probe leaves of a batch, and how it becomes record fields on the writer's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMPUTED", "NO_EVENTS", "PREFILL", "Events", "contents_of"]


class Events(NamedTuple):
    """What a batch holds and what happened before it, beyond decodes of one token each."""

    prefill: dict[str, int]  # chunk by request
    surplus: int  # tokens in prefill, less one for each request
    prefill_context: int  # tokens computed before the batch, over the requests in prefill
    new_context: int  # likewise, over the requests that vLLM reports as new
    num_new: int
    num_resumed: int
    num_cached: int
    num_preempted: int
    num_finished: int  # in steps without a batch since the last record


COMPUTED = 8
"""Where in a batch the tokens computed of each request are."""

PREFILL = 0
"""Where in events the requests in prefill are."""

NO_EVENTS = Events({}, 0, 0, 0, 0, 0, 0, 0, 0)


def contents_of(scheduler: Any) -> Callable[[Any, Any], dict[str, Any]]:
    """Return what turns a probe's measurements into record fields, on the writer's thread."""
    pool = scheduler.kv_cache_manager.block_pool
    # One block is vLLM's null block, which is never in use and never free.
    num_blocks = pool.num_gpu_blocks - 1

    def fields_of(
        contents: tuple[Any, ...], told: tuple[int | None, tuple[int, int] | None]
    ) -> dict[str, Any]:
        generated, drafts = told
        (
            num_running,
            num_waiting,
            free_blocks,
            num_reqs,
            computed,
            num_finished,
            events,
            decode,
            ids,
        ) = contents
        events = Events._make(events) if events else NO_EVENTS
        prefill = events.prefill
        return {
            "prefill_chunk_sizes": list(prefill.values()),
            "decode_chunk_sizes": [1] * (num_reqs - len(prefill)) if decode is None else decode,
            "num_running_reqs": num_running,
            "num_waiting_reqs": num_waiting,
            "kv_cache_usage": 1 - free_blocks / num_blocks if num_blocks else 0.0,
            "prefill_context_tokens": events.prefill_context,
            "decode_context_tokens": sum(computed) + events.new_context - events.prefill_context,
            "num_new_reqs": events.num_new,
            "num_resumed_reqs": events.num_resumed,
            "num_cached_tokens": events.num_cached,
            "num_preempted_reqs": events.num_preempted,
            "num_finished_reqs": num_finished + events.num_finished,
            # Of a batch without a result nothing is known of its drafts.
            "num_draft_tokens": None if generated is None else drafts[0] if drafts else 0,
            "num_accepted_tokens": None if generated is None else drafts[1] if drafts else 0,
            "num_generated_tokens": generated,
            "request_ids": ids or None,
        }

    return fields_of
