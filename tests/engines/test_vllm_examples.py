"""The examples with a real vLLM engine do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_vllm import read

pytestmark = [pytest.mark.vllm, pytest.mark.aside]

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_sweep_runs_the_offline_engine_with_each_size_and_compares(tmp_path: Path) -> None:
    """Of two sizes the larger one takes fewer steps; the sides are called by their size."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "chunk_size_sweep.py"), "tiny", "64", "512"],
        cwd=tmp_path,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    logs = [tmp_path / "sweep" / size / "scheduler_profiling.jsonl" for size in ("64", "512")]
    (small,), (large,) = map(read, logs)
    assert len(large) < len(small)
    for records, budget in ((small, 64), (large, 512)):
        assert {record.token_budget for record in records} == {budget}
        assert [record.batch_id for record in records] == list(range(len(records)))
        assert sum(record.num_generated_tokens or 0 for record in records) == 32 * 12
    # The summary of each, and then the comparison.
    assert len(re.findall(r"^\d+ batches of 1 run", done.stdout, re.MULTILINE)) == 2
    assert "max_num_batched_tokens=512" in done.stdout.rpartition("batches of 1 run")[2]
