"""How many records a second `sched-profiler validate` gets through, on one core.

`make bench` runs it. Beside it stands the reference, `jsonschema`, on a part of the same lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from sched_profiler import encode, schema
from sched_profiler.testing import make_record
from sched_profiler.validate import validate

_RECORDS = 200_000
_RECORDS_OF_REFERENCE = 2_000


def measure(num_decodes: int, folder: Path) -> dict[str, Any]:
    """Return the rates for batches of so many decodes, in records per second of one core."""
    log = folder / f"{num_decodes}.jsonl"
    # The optional fields that vLLM's adapter fills.
    optional = {
        "schema_version": 1,
        "run_id": "0123456789ab",
        **dict.fromkeys(("dp_rank", "num_new_reqs", "num_resumed_reqs", "num_preempted_reqs"), 0),
        **dict.fromkeys(("num_finished_reqs", "num_cached_tokens", "num_draft_tokens"), 0),
        **dict.fromkeys(("num_accepted_tokens", "num_inflight_batches"), 0),
        **dict.fromkeys(("prefill_context_tokens", "num_prefill_tokens"), 0),
        **dict.fromkeys(("num_decode_tokens", "num_generated_tokens"), num_decodes),
        "decode_context_tokens": 700 * num_decodes,
        "token_budget": 8192,
        **dict.fromkeys(("queue_duration_ms", "update_duration_ms", "idle_duration_ms"), 0.125),
        "num_dropped_records": 0,
    }
    with log.open("wb") as stream:
        for number in range(_RECORDS):
            record = make_record(number, prefill=(), decode=[1] * num_decodes, **optional)
            stream.write(encode(record))
    best = float("inf")
    for _ in range(5):
        began = time.thread_time()
        report = validate(log)
        best = min(best, time.thread_time() - began)
    if report.num_violations or report.num_records != _RECORDS:
        sys.exit(f"the log is not as it was written: {report}")
    reference = Draft202012Validator(schema())
    with log.open("rb") as stream:
        lines = [next(stream) for _ in range(_RECORDS_OF_REFERENCE)]
    began = time.thread_time()
    for line in lines:
        reference.validate(json.loads(line))
    return {
        "decodes": num_decodes,
        "records_per_second": _RECORDS / best,
        "megabytes_per_second": log.stat().st_size / best / 1e6,
        "reference_records_per_second": len(lines) / (time.thread_time() - began),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(num_decodes, Path(folder)) for num_decodes in (1, 64, 256, 1024)]
    for row in rows:
        print(
            f"{row['decodes']:>4} decodes a batch: {row['records_per_second']:>8.0f} records/s,"
            f" {row['megabytes_per_second']:>4.0f} MB/s;"
            f" jsonschema {row['reference_records_per_second']:>5.0f} records/s"
        )
    (out / "validate_rate.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
