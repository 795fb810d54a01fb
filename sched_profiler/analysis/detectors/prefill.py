"""How much longer do decodes wait because of the prefills in their batch?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sched_profiler.analysis.composition import usual

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sched_profiler.analysis.detectors.evidence import Evidence
    from sched_profiler.analysis.finding import Finding

__all__ = ["interference"]

_TIMES = 2.0
_SHARE = 0.20
_CRITICAL = 0.50
_FEWEST = 10
_FEWEST_ALIKE = 5
_PER_OCTAVE = 2


def interference(run: Evidence) -> Iterator[Finding]:
    """Compare mixed batches with batches of about as many decodes and no prefill."""
    decodes = run.column("num_decode_reqs")
    model = run.column("model_run_duration_ms")
    has_prefill = run.column("num_prefill_reqs") > 0
    alone = (decodes > 0) & ~has_prefill & ~np.isnan(model)
    size = np.rint(np.log2(1 + decodes) * _PER_OCTAVE)
    beside = usual(model[alone], size[alone], size, _FEWEST_ALIKE)
    mixed = (decodes > 0) & has_prefill & ~np.isnan(model) & ~np.isnan(beside)
    if mixed.sum() < _FEWEST:
        return
    extra = model - beside
    times = float(np.median(model[mixed] / np.maximum(beside[mixed], 1e-3)))
    waited = float((decodes * beside)[mixed].sum() + (decodes * model)[alone].sum())
    longer = float((decodes * extra)[mixed].sum()) / waited if waited else 0.0
    if times < _TIMES or longer < _SHARE:
        return
    typical = float(np.median(extra[mixed]))
    share = float(mixed.sum() / (decodes > 0).sum())
    yield run.finding(
        "prefill_interference",
        "critical" if longer >= _CRITICAL else "warning",
        f"Decodes wait {times:.2g} times as long in batches with prefill as in batches of as many "
        f"decodes without ({typical:.3g} ms more, in {share:.0%} of their batches); it makes the "
        f"mean time between tokens {longer:.0%} longer",
        numbers={
            "times_as_long_p50": times,
            "extra_ms_p50": typical,
            "extra_ms_p95": float(np.quantile(extra[mixed], 0.95)),
            "share_of_decode_batches": share,
            "mean_inter_token_latency_increase": longer,
            "prefill_tokens_p50": float(np.median(run.prefill_tokens[mixed])),
        },
        shown_by=np.where(mixed, decodes * extra, 0.0),
        remedy="Smaller chunks: lower max_num_batched_tokens or set long_prefill_token_threshold, "
        "or prefill in engines of their own. Smaller chunks make prompts wait longer for their "
        "first token; sched-profiler tune weighs one against the other.",
    )
