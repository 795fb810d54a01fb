"""Throughput of a real vLLM engine that is profiled while something fails, against unprofiled.

`make faults` runs it. One engine in this process generates the same again and again, in short
rounds. For each fault, rounds with a profiler that meets it and rounds without a profiler take
turns in balanced order (on, off, off, on, ...), so that the machine's drift meets both alike. The
two that ran one after the other are a pair. Pairs of two rounds without a profiler, off against
off, show what is noise. The tokens of every round are those of an engine that was never profiled,
or the bench fails.

What a profiler does on threads of its own goes on in the rounds without it. So their CPU time is
counted: as much as they take of a core is all that can be hidden in this way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # Before vLLM is imported.
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # A model on every core leaves none for the writer, as no model on a GPU does.
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Stores are asked once, and then again as the sink sees fit.
        "AWS_MAX_ATTEMPTS": "1",
    }

from delivery_faults import FAULTS, TOKENS, Bench, Met, is_on
from engine_in_process import InProcess, generate
from faulty_vllm import plug_in
from hook_cost import measured_on
from s3_server import S3Server
from tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable


def middle(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the median of the ratios, and its interval of 95% by the sign test.

    Of few pairs it is all that was seen.
    """
    ratios = sorted(a / b for a, b in pairs)
    n = len(ratios)
    left_out, chance = 0, 1 / 2**n
    while chance <= 0.025:
        left_out += 1
        chance += comb(n, left_out) / 2**n
    outermost = max(left_out - 1, 0)
    return statistics.median(ratios), ratios[outermost], ratios[n - 1 - outermost]


def compare(
    generate_once: Callable[[], list[list[int]]],
    met: Met,
    expected: list[list[int]],
    rounds: int,
) -> dict[str, Any]:
    """Take turns; return the ratios of throughput and whether the tokens are the expected ones."""
    profiling, before = met
    seconds: dict[bool, list[float]] = {True: [], False: []}
    others = 0.0
    num_others = 0
    for number in range(rounds):
        before(number)
        with profiling if is_on(number) else nullcontext():
            began, cpu = time.perf_counter(), time.process_time() - time.thread_time()
            tokens = generate_once()
            seconds[is_on(number)].append(time.perf_counter() - began)
            others += time.process_time() - time.thread_time() - cpu
        num_others += tokens != expected
    on, off = seconds[True], seconds[False]
    by_turns = [pair[:: 1 if n % 2 else -1] for n, pair in enumerate(zip(off[::2], off[1::2]))]  # noqa: B905
    return {
        "on_against_off": middle(list(zip(off, on, strict=True))),
        "off_against_off": middle(by_turns),
        "rounds": rounds,
        "round_ms": 1000 * statistics.median(off),
        "other_threads": others / sum(on + off),
        "rounds_with_other_tokens": num_others,
    }


def main() -> int:
    """Measure each fault and write the table; return 1 if any tokens were others."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument(
        "--rounds", type=int, default=160, help="of each fault; a multiple of 4, at least 12"
    )
    parser.add_argument("--fault", nargs="*", choices=FAULTS, default=list(FAULTS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        plug_in(place / "site")
        sys.path.insert(0, str(place / "site"))
        model = make_tiny_model(place / "model")
        (place / "seaweed").mkdir()
        one, server = InProcess(str(model)), S3Server(place / "seaweed")
        generate_once = partial(generate, one.llm, TOKENS)
        expected = generate_once()
        for number, fault in enumerate(arguments.fault):
            folder = place / f"fault-{number}"
            with FAULTS[fault](Bench(folder, one, server)) as met:
                row = compare(generate_once, met, expected, arguments.rounds)
                one.finish()
            rows.append({"fault": fault, **row})
            print(
                f"{fault:<52}"
                + "".join("{:>8.3f} ({:.3f} to {:.3f})".format(*row[name]) for name in RATIOS)
                + f"{row['other_threads']:>8.1%} {row['rounds_with_other_tokens']}",
                flush=True,
            )
            result = {**measured_on(), "load_average": os.getloadavg()[2], "rows": rows}
            (arguments.out / "faults.json").write_text(json.dumps(result, indent=2) + "\n")
        server.kill()
    return int(any(row["rounds_with_other_tokens"] for row in rows))


RATIOS = ("on_against_off", "off_against_off")

if __name__ == "__main__":
    sys.exit(main())
