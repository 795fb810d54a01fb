"""Profile a real vLLM server under a mixed load, from the first start to the picture.

`make demo` runs it. It makes a tiny model, starts `vllm serve` with profiling on through the three
environment variables alone, lets concurrent HTTP clients send requests of mixed lengths, stops the
server, analyses the log and checks every line of it. Everything it writes is in one folder.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from jsonschema import Draft202012Validator
from tiny_model import MAX_MODEL_LEN, make_tiny_model
from vllm_server import Server, ServerError, command, serve

import sched_profiler

if TYPE_CHECKING:
    from collections.abc import Callable

# A small budget and few seats, so that the scheduler has something to decide: prompts are cut into
# chunks that share batches with decodes, and requests queue.
_FLAGS = (
    f"--max-model-len={MAX_MODEL_LEN}",
    "--max-num-batched-tokens=256",
    "--max-num-seqs=16",
    # Without it vLLM kills its engine in the moment in which it asks it to end.
    "--shutdown-timeout=10",
)
_NUM_CLIENTS = 24
_TELL_EVERY_S = 5.0


class Request(NamedTuple):
    """What a client asks for: a prompt, and how many tokens to generate after it."""

    prompt: str
    max_tokens: int


def main() -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(".demo"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--requests", type=int, default=300, help="requests to send (default: %(default)s)"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    try:
        return run(arguments.out, arguments.requests)
    except ServerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def run(out: Path, num_requests: int) -> int:
    """Go through the steps, writing to the folder `out`; return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    log, picture, page = (
        out / name for name in ("scheduler_profiling.jsonl", "overview.png", "report.html")
    )
    # Logs are appended to: a run of the demo begins a new one.
    for old in (log, *out.glob("*.run.json"), picture, page):
        old.unlink(missing_ok=True)

    print(f"[1/5] making a model of random weights in {out / 'model'}", flush=True)
    model = make_tiny_model(out / "model")

    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "VLLM_SCHEDULER_PROFILING_CONSOLE": "true",
    }
    server_log = out / "server.log"
    print(f"[2/5] starting vLLM; what it prints goes to {server_log}")
    for name, value in environ.items():
        print(f"      export {name}={value}")
    print(f"      {shlex.join(command(model, _FLAGS))}", flush=True)
    started = time.monotonic()
    with serve(
        model, log=server_log, environ=environ, flags=_FLAGS, on_wait=_teller("starting")
    ) as server:
        print(f"      ready after {time.monotonic() - started:.0f} s")
        print(f"[3/5] sending {num_requests} requests from {_NUM_CLIENTS} clients", flush=True)
        used = send(server, mixed_requests(num_requests))
        print("[4/5] stopping vLLM (SIGTERM)", flush=True)

    print(f"[5/5] sched-profiler analyze {log} --out {out}\n", flush=True)
    analyze = [sys.executable, "-m", "sched_profiler", "analyze", str(log), "--out", str(out)]
    report = [sys.executable, "-m", "sched_profiler", "report", str(log), "-o", str(page)]
    for step in (analyze, [*report, "--title", "Demo: chats, documents, both"]):
        status = subprocess.run(step, check=False).returncode  # noqa: S603 - made right above
        if status:
            return status
    return check(log, picture, page, used, num_requests)


def mixed_requests(number: int) -> list[Request]:
    """Return requests of three kinds: chats first, then long documents, then both mixed.

    Documents begin with the same 300 tokens, of which vLLM keeps the KV cache.
    """
    draw = random.Random(7)  # noqa: S311 - a load, not a secret
    letters = string.ascii_lowercase + " "

    def text(shortest: int, longest: int) -> str:
        return "".join(draw.choices(letters, k=draw.randint(shortest, longest)))

    instructions = text(300, 300)

    def chat() -> Request:
        return Request(text(8, 120), draw.randint(24, 96))

    def document() -> Request:
        return Request(instructions + text(200, 1300), draw.randint(4, 24))

    third = number // 3
    mixed = [draw.choice((chat, document))() for _ in range(number - 2 * third)]
    return [chat() for _ in range(third)] + [document() for _ in range(third)] + mixed


def send(server: Server, requests: list[Request]) -> Counter[str]:
    """Send requests from concurrent clients; return the tokens the server says they used."""
    used: Counter[str] = Counter()
    tell = _teller("answering")
    clients = ThreadPoolExecutor(_NUM_CLIENTS)
    try:
        for number, answer in enumerate(clients.map(lambda r: server.complete(*r), requests), 1):
            usage = answer["usage"]
            used["prompt"] += usage["prompt_tokens"]
            used["cached"] += usage["prompt_tokens_details"]["cached_tokens"]
            used["generated"] += usage["completion_tokens"]
            tell(f"{number} of {len(requests)}")
    finally:
        # Nobody waits here for answers: when the server stops, requests on their way fail.
        clients.shutdown(wait=False, cancel_futures=True)
    print(
        f"      {len(requests)} answers: {used['prompt']} prompt tokens, {used['cached']} of them"
        f" cached, and {used['generated']} generated tokens",
        flush=True,
    )
    return used


def check(log: Path, picture: Path, page: Path, used: Counter[str], num_requests: int) -> int:
    """Hold the log against the schema and against the server's own count of tokens.

    Returns:
        0, or 1 when something does not fit; that is then printed.
    """
    validator = Draft202012Validator(sched_profiler.schema())
    num_lines = num_tokens = 0
    with log.open(encoding="utf-8") as lines:
        for num_lines, line in enumerate(lines, 1):
            record = json.loads(line)
            for error in validator.iter_errors(record):
                print(f"demo: line {num_lines} of {log}: {error.message}", file=sys.stderr)
                return 1
            num_tokens += record["total_scheduled_tokens"]
    print(f"\nEach of the {num_lines} lines of the log fits the schema.")
    # The last token of an answer is never put through the model.
    computed = used["prompt"] - used["cached"] + used["generated"] - num_requests
    if num_tokens != computed:
        print(
            f"demo: the log says {num_tokens} tokens were computed, the answers say {computed}",
            file=sys.stderr,
        )
        return 1
    print(f"Its batches computed {num_tokens} tokens, exactly those of the answers.")
    print(f"\nlog:      {log}\npicture:  {picture}\nreport:   {page.resolve().as_uri()}")
    return 0


def _teller(doing: str) -> Callable[[object], None]:
    """Return a function that prints how far something is, at most every few seconds."""
    last = time.monotonic()

    def tell(progress: object) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_EVERY_S:
            last = time.monotonic()
            shown = f"{progress:.0f} s" if isinstance(progress, float) else progress
            print(f"      ... {doing}, {shown}", flush=True)

    return tell


def _leave(number: int, _frame: object) -> NoReturn:
    """End on a signal as on an exception, so that the server is stopped."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
