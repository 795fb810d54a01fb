"""Traces the requests of one vLLM scheduler, where that is asked for.

It stands around what vLLM calls once for each request: when it comes and when it leaves. Between
the two it looks only at those that have no token yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sched_profiler.request_trace import RequestTrace, TracedRequest

__all__ = ["RequestProbe"]


class RequestProbe:
    """Tells a trace of the requests of one scheduler."""

    def __init__(self, scheduler: Any, trace: RequestTrace) -> None:
        """Bind to `scheduler` without changing it."""
        self._scheduler = scheduler
        self._trace = trace
        self._traced: dict[str, TracedRequest] = {}
        # Scheduled, and without a token: vLLM's request and ours.
        self._expected: dict[str, tuple[Any, TracedRequest]] = {}
        self._add: Callable[..., Any]
        self._free: Callable[..., Any]
        self._update: Callable[..., Any]

    def attach(self) -> None:
        """Stand around the scheduler's methods, and around a probe that stands there by now."""
        self._add = self._scheduler.add_request
        # Where every request leaves, however it ends.
        self._free = self._scheduler._free_request  # noqa: SLF001 - as said
        self._update = self._scheduler.update_from_output
        self._trace.before_close = self.give_up
        self._scheduler.add_request = self.add_request
        self._scheduler._free_request = self.free_request  # noqa: SLF001 - as above
        self._scheduler.update_from_output = self.update_from_output

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Take a request in as before; further input of a session is no request of its own."""
        try:
            if self._trace.boundary.is_open and request.request_id not in self._scheduler.requests:
                self._traced[request.request_id] = self._trace.arrived()
        except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, it stays ours
            self._trace.boundary.failed(error)
        return self._add(request, *args, **kwargs)

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Take a result in as before, and see who was scheduled first and who has a first token."""
        try:
            output: Any = args[0] if args else kwargs.get("scheduler_output")
            # vLLM may tell of resumed requests as if they were new.
            for data in output.scheduled_new_reqs:
                traced = self._traced.get(data.req_id)
                if traced is not None and traced.num_cached is None:
                    traced.num_cached = data.num_computed_tokens
                    self._expected[data.req_id] = self._scheduler.requests[data.req_id], traced
        except Exception as error:  # noqa: BLE001 - as above
            self._trace.boundary.failed(error)
        returned = self._update(*args, **kwargs)
        try:
            if self._expected:
                self._look_for_first_tokens()
        except Exception as error:  # noqa: BLE001 - as above
            self._trace.boundary.failed(error)
        return returned

    def free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Let a request go as before."""
        try:
            self._expected.pop(request.request_id, None)
            traced = self._traced.pop(request.request_id, None)
            if traced is not None:
                self._ended(request, traced, _outcome(request.status.name))
        except Exception as error:  # noqa: BLE001 - as above
            self._trace.boundary.failed(error)
        return self._free(request, *args, **kwargs)

    def give_up(self) -> None:
        """Record what is still with the engine as unfinished."""
        while self._traced:
            req_id, traced = self._traced.popitem()
            request = self._scheduler.requests.get(req_id)
            if request is not None:
                self._ended(request, traced, "unfinished")

    def _look_for_first_tokens(self) -> None:
        for req_id, (request, traced) in list(self._expected.items()):
            if request.num_output_tokens:
                self._trace.got_first_token(traced)
                del self._expected[req_id]

    def _ended(self, request: Any, traced: TracedRequest, outcome: str) -> None:
        num_output = request.num_output_tokens
        if num_output and traced.first_token_ns is None:
            self._trace.got_first_token(traced)
        self._trace.ended(
            traced,
            outcome,
            num_prompt_tokens=request.num_prompt_tokens,
            num_output_tokens=num_output,
            num_preemptions=request.num_preemptions,
        )


def _outcome(status: str) -> str:
    if status == "FINISHED_ABORTED":
        return "aborted"
    return "failed" if status in ("FINISHED_ERROR", "FINISHED_IGNORED") else "finished"
