"""What the words of a report mean."""

from __future__ import annotations

__all__ = ["DEFINITIONS"]

DEFINITIONS = (
    (
        "Batch",
        "What one step of the scheduler hands to the model: some tokens of some requests. "
        "A log has a record for each.",
    ),
    (
        "Schedule time",
        "How long schedule() took: choosing the requests and tokens of a batch.",
    ),
    (
        "Model-run time",
        "How long a batch had the model to itself, until its result was available.",
    ),
    (
        "Total step time",
        "From the start of schedule() until the result was available, waiting behind batches in "
        "flight included: the latency of the step.",
    ),
    (
        "Idle time",
        "How long the model had nothing to do before a batch came.",
    ),
    (
        "Wall time",
        "The sum of model-run and idle time over the batches of a run; where the log lacks these, "
        "from the start of the first step to the end of the last. Runs are added up.",
    ),
    (
        "Throughput",
        "Scheduled tokens over wall time. Prefill counts, so that it is more than what clients "
        "receive.",
    ),
    (
        "On the critical path",
        "Share of wall time for which the model had to wait for schedule(). Where scheduling "
        "overlaps with the model, it is less than the share of schedule time.",
    ),
    (
        "Prefill and decode",
        "A request decodes if it has generated a token and only its newest one has to be "
        "computed; otherwise it is in prefill, also when it is computed again after a preemption.",
    ),
    (
        "Waiting and running requests",
        "The queues of the scheduler right after schedule().",
    ),
    (
        "KV cache in use",
        "Share of the blocks of the KV cache that are taken, right after schedule().",
    ),
    (
        "Token budget",
        "The most tokens that a batch may have: max_num_batched_tokens.",
    ),
    (
        "P50, P95, P99",
        "Percentiles: so many in a hundred values are smaller or equal.",
    ),
    (
        "Usual, and z",
        "The median of up to 50 batches of the same run that hold about the same, and how many "
        "times farther from it a batch is than these stray. Beyond 3.5 is unusual.",
    ),
    (
        "Missing and dropped",
        "Batches without a record: gaps in batch_id, and what the engine counted as dropped.",
    ),
)
"""Terms and their meanings, in the order of the report."""
