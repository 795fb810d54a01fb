"""How much of a core `sched-profiler top` takes while a log grows, on a real terminal.

`make bench` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
from synthetic import records
from terminal_under_test import Terminal

from sched_profiler import encode

_SECONDS = 15
_SETTLING_S = 3
# At most so much of the log is new when `top` looks.
_TURN_S = 0.05


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(interval: str, rate: int, folder: Path) -> dict[str, Any]:
    """Return the share of a core that it takes, at so many batches a second."""
    batches = list(records(rate * (_SETTLING_S + _SECONDS + 1)))
    log = folder / f"{interval}-{rate}.jsonl"
    log.touch()
    command = [sys.executable, "-m", "sched_profiler", "top", str(log), f"--interval={interval}"]
    with Terminal(command) as terminal, log.open("ab", buffering=0) as stream:
        terminal.wait_for_text("waiting")
        written = 0
        began, taken = time.monotonic(), 0.0
        while (passed := time.monotonic() - began) < _SETTLING_S + _SECONDS:
            if not taken and passed >= _SETTLING_S:
                taken, settled = cpu_seconds(terminal.pid), passed
            due = batches[written : round(passed * rate)]
            now = time.time()
            stream.write(b"".join(encode(attrs.evolve(b, timestamp=now)) for b in due))
            written += len(due)
            terminal.take(_TURN_S)
        share = (cpu_seconds(terminal.pid) - taken) / (passed - settled)
        terminal.wait_for_text(batches[0].run_id or "", "lost: nothing")
        terminal.type("q")
        if code := terminal.wait():
            sys.exit(f"top ended with {code}")
    return {"interval": interval, "batches_per_second": rate, "share_of_a_core": share}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(interval, rate, Path(folder))
            for interval, rate in (("100ms", 10), ("100ms", 100), ("100ms", 1000), ("1s", 100))
        ]
    for row in rows:
        print(
            f"every {row['interval']:>5}, {row['batches_per_second']:>4} batches/s: "
            f"{row['share_of_a_core']:.1%} of a core"
        )
    (out / "top_cost.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
