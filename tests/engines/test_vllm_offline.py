"""Real vLLM, offline: the log says what vLLM's own outputs say."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from real_vllm import Run, check_times

from sched_profiler import BatchRecord, schema

pytestmark = pytest.mark.vllm


def expected_tokens(outputs: list[dict[str, int]]) -> int:
    """Tokens that must have been scheduled, by vLLM's own outputs: the last is never scheduled."""
    return sum(o["prompt"] - o["cached"] + o["generated"] - 1 for o in outputs)


def check_run(records: list[BatchRecord]) -> None:
    """Check what holds for every run of every engine."""
    assert [record.batch_id for record in records] == list(range(len(records)))
    for record in records:
        record.check()
        assert record.num_dropped_records == 0
        assert record.token_budget == 256
        assert record.total_scheduled_tokens <= 256


def test_a_synchronous_run_schedules_the_tokens_that_vllm_reports(in_process: Run) -> None:
    """Prompt - cached + generated - 1 per request; a prefix-cache hit is not scheduled."""
    records, outputs = in_process.runs[0], in_process.outputs["synchronous"]
    check_run(records)
    check_times(records)
    assert sum(r.total_scheduled_tokens for r in records) == expected_tokens(outputs)
    assert sum(r.num_generated_tokens or 0 for r in records) == sum(o["generated"] for o in outputs)
    assert sum(r.num_cached_tokens or 0 for r in records) == sum(o["cached"] for o in outputs) > 0
    assert sum(r.num_new_reqs or 0 for r in records) == len(outputs)
    # Every prompt token that was not cached is prefill, and nothing else is.
    prefill = sum(o["prompt"] - o["cached"] for o in outputs)
    assert sum(sum(r.prefill_chunk_sizes) for r in records) == prefill
    assert {r.queue_duration_ms for r in records} == {0.0}
    assert any(r.num_prefill_reqs and r.num_decode_reqs for r in records)
    assert max(r.num_waiting_reqs for r in records) > 0


def test_an_asynchronous_run_counts_no_second_twice(asynchronous: Run) -> None:
    """Batches overlap, so Σ total exceeds the wall time, and Σ(model_run + idle) does not."""
    (records,), (account,) = asynchronous.runs, asynchronous.accounts
    outputs = asynchronous.outputs["asynchronous"]
    check_run(records)
    account.check(records)
    check_times(records, account.wall_ms)
    assert sum(r.total_scheduled_tokens for r in records) == expected_tokens(outputs)
    assert sum(r.num_generated_tokens or 0 for r in records) == sum(o["generated"] for o in outputs)
    assert max(r.num_inflight_batches or 0 for r in records) == 1
    total = sum(r.total_step_duration_ms or 0 for r in records)
    wall = sum((r.model_run_duration_ms or 0) + (r.idle_duration_ms or 0) for r in records)
    assert total > 1.3 * wall


def test_the_users_own_scheduler_is_kept_and_profiled(in_process: Run) -> None:
    """The profiled class is a subclass of it; arguments we do not know reach it."""
    records, outputs = in_process.runs[1], in_process.outputs["users_scheduler"]
    check_run(records)
    assert sum(r.total_scheduled_tokens for r in records) == expected_tokens(outputs)


def test_an_engine_error_loses_nothing_and_shows_the_batch_that_failed(in_process: Run) -> None:
    """The error is vLLM's own, and the seventh batch has no model time."""
    records = in_process.runs[2]
    assert in_process.outputs["failing_model"] == "the model fails, says the test"
    check_run(records)
    assert [r.model_run_duration_ms is None for r in records] == [False] * 6 + [True]


def test_every_line_of_a_real_log_validates(in_process: Run, asynchronous: Run) -> None:
    """Against the schema that ships with the package."""
    validator = jsonschema.Draft202012Validator(schema())
    for run in (in_process, asynchronous):
        for line in run.log.read_bytes().splitlines():
            validator.validate(json.loads(line))


def test_vllm_does_not_warn_about_our_variables(in_process: Run) -> None:
    """Operators would take it for a typo of theirs; and where we log, our name is on it."""
    # It does warn about VLLM_DIST_IDENT, which it sets itself: the check was made.
    unknown = re.findall(r"Unknown vLLM environment variable detected: (\w+)", in_process.printed)
    assert unknown
    assert not [name for name in unknown if "SCHEDULER_PROFILING" in name]
    assert "scheduler profiling is on: run" in in_process.printed
