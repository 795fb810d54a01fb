"""What a batch holds, worked out anew from vLLM's own objects: the slow way, and no code of ours.

Before every step all requests are looked at, so that nothing has to be followed; what changed is
what differs after it. Definitions are those of the design: known are the tokens a request has or
will have when what is in flight returns, computed those whose KV cache is (or is being) filled.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Known(NamedTuple):
    """One request before a step."""

    known: int
    computed: int
    generated: int
    num_preemptions: int


class Oracle:
    """Follows one scheduler by looking at everything before and after every step."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.ever_scheduled: set[str] = set()
        self.seen_preemptions: dict[str, int] = {}
        # Preempted and not scheduled since.
        self.preempted: set[str] = set()
        # Also those that vLLM has forgotten: one may be preempted and then aborted between steps.
        self.all_requests: dict[str, Any] = {}
        self.before: dict[str, Known] = {}
        self.num_preempted = 0
        self.num_finished = 0

    def look(self) -> None:
        """Look at every request, right before schedule()."""
        self.all_requests |= self.scheduler.requests
        self.before = {
            req_id: Known(
                request.num_prompt_tokens
                + request.num_output_tokens
                + request.num_output_placeholders,
                request.num_computed_tokens,
                request.num_output_tokens + request.num_output_placeholders,
                request.num_preemptions,
            )
            for req_id, request in self.scheduler.requests.items()
        }

    def batch(self, output: Any) -> dict[str, Any] | None:
        """Return what the record of this batch must say, or None if it gets none."""
        for req_id, request in self.all_requests.items():
            again = request.num_preemptions - self.seen_preemptions.get(req_id, 0)
            self.num_preempted += again
            if again:
                self.preempted.add(req_id)
            self.seen_preemptions[req_id] = request.num_preemptions
        self.num_finished += len(output.finished_req_ids)
        if not output.num_scheduled_tokens:
            return None
        computed = {d.req_id: d.num_computed_tokens for d in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        prefill: dict[str, int] = {}
        decode: dict[str, int] = {}
        new, resumed = [], []
        for req_id, chunk in output.num_scheduled_tokens.items():
            state = self.before[req_id]
            is_decode = state.generated >= 1 and state.known - computed[req_id] <= 1
            (decode if is_decode else prefill)[req_id] = chunk
            if req_id not in self.ever_scheduled:
                new.append(req_id)
            elif req_id in self.preempted:
                resumed.append(req_id)
        self.ever_scheduled.update(output.num_scheduled_tokens)
        self.preempted.difference_update(output.num_scheduled_tokens)
        expected = {
            "prefill": prefill,
            "decode": decode,
            "total_scheduled_tokens": sum(output.num_scheduled_tokens.values()),
            "prefill_context_tokens": sum(computed[r] for r in prefill),
            "decode_context_tokens": sum(computed[r] for r in decode),
            "num_new_reqs": len(new),
            "num_resumed_reqs": len(resumed),
            "num_cached_tokens": sum(computed[r] for r in new),
            "num_preempted_reqs": self.num_preempted,
            "num_finished_reqs": self.num_finished,
            "num_draft_tokens": sum(map(len, output.scheduled_spec_decode_tokens.values())),
            "num_running_reqs": len(self.scheduler.running),
            "num_waiting_reqs": self._num_waiting(),
            "kv_cache_usage": self.scheduler.kv_cache_manager.usage,
        }
        self.num_preempted = self.num_finished = 0
        return expected

    def _num_waiting(self) -> int:
        """Requests that are neither running nor finished."""
        running = {request.request_id for request in self.scheduler.running}
        return sum(
            1
            for req_id, request in self.scheduler.requests.items()
            if req_id not in running and not request.is_finished()
        )


def disagreements(record: Any, expected: dict[str, Any]) -> list[str]:
    """Return, in words, every way in which a record is not what the oracle says."""
    found = []
    ids, num_prefill = record.request_ids, record.num_prefill_reqs
    for phase, chunks, whose in (
        ("prefill", record.prefill_chunk_sizes, slice(num_prefill)),
        ("decode", record.decode_chunk_sizes, slice(num_prefill, None)),
    ):
        if ids is None:
            # Nobody asked who is in a batch: then chunks have no owner, and no order.
            same = sorted(chunks) == sorted(expected[phase].values())
        else:
            same = dict(zip(ids[whose], chunks, strict=True)) == expected[phase]
        if not same:
            found.append(f"{phase}: record {chunks} of {ids}, oracle {expected[phase]}")
    for name, value in expected.items():
        if name in ("prefill", "decode"):
            continue
        ours = getattr(record, name)
        # The record rounds the usage to 6 decimals.
        if (abs(ours - value) > 1e-6) if name == "kv_cache_usage" else (ours != value):
            found.append(f"{name}: record {ours}, oracle {value}")
    return found
