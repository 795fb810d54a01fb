"""Sends the records of an engine to object storage, and reads them back.

    export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... AWS_ENDPOINT_URL=...
    python examples/s3_round_trip.py s3://bucket/prefix/

Any store that fsspec knows works; credentials come from where its client looks for them, never from
the URL. Records wait in a spool on the local disk until their upload is confirmed. With vLLM, the
same is `VLLM_SCHEDULER_PROFILING_LOG=s3://bucket/prefix/`.
"""

from __future__ import annotations

import sys
import time

from custom_engine import Engine, Request

from sched_profiler import BatchProfiler, RemoteSink
from sched_profiler.analysis import scan, summarize
from sched_profiler.verify import verify


def main(url: str) -> None:
    """Profile a small engine into a store, check that all arrived, and sum it up."""
    sink = RemoteSink(url, spool="spool")
    with BatchProfiler(sink, token_budget=256) as profiler:
        engine = Engine(profiler, run_model=lambda tokens: time.sleep(tokens * 1e-5))
        engine.run(Request(prompt, 10) for prompt in (20, 1500, 100, 700) * 5)

    # The end of the block waits for the upload: from here on, nothing local is needed.
    print(verify(url))
    print(summarize(scan(url)))


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and the URL
        sys.exit(f"usage: {sys.argv[0]} URL, such as s3://bucket/prefix/")
    main(sys.argv[1])
