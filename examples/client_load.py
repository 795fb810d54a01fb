"""Puts a running vLLM server under load: concurrent clients, prompts of mixed lengths.

Start the server with profiling on, in another terminal, and then this:

    VLLM_ENABLE_SCHEDULER_PROFILING=true vllm serve YOUR_MODEL
    python examples/client_load.py http://127.0.0.1:8000

Meanwhile `sched-profiler top scheduler_profiling.jsonl` shows what the scheduler does. Some prompts
begin with the same text, so that the prefix cache has something to do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import string
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["put_under_load"]

_LENGTHS = (3, 900, 40, 300, 1300, 64)
_STARTS = (0, 0, 700, 1500)
# A loopback address is behind no proxy.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def put_under_load(
    url: str, *, num_requests: int = 60, num_clients: int = 12, max_tokens: int = 20
) -> list[dict[str, Any]]:
    """Send requests, and return the server's answers in their order.

    Args:
        url: of the server, such as `http://127.0.0.1:8000`.
        num_requests: how many, in all.
        num_clients: how many at a time.
        max_tokens: tokens to generate for each.
    """
    model = _ask(f"{url}/v1/models")["data"][0]["id"]
    text = "".join(random.Random(5).choices(string.ascii_lowercase, k=4000))  # noqa: S311 - a load
    parts = zip(itertools.cycle(_STARTS), itertools.cycle(_LENGTHS), strict=False)
    prompts = [
        text[start : start + length] for start, length in itertools.islice(parts, num_requests)
    ]

    def complete(prompt: str) -> dict[str, Any]:
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        answer: dict[str, Any] = _ask(f"{url}/v1/completions", body)
        return answer

    with ThreadPoolExecutor(num_clients) as clients:
        return list(clients.map(complete, prompts))


def _ask(url: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(  # noqa: S310 - the user's own server
        url,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with _DIRECT.open(request, timeout=300) as response:
        return json.load(response)


def main() -> None:
    """Send the load that the command line asks for, and say what was answered."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--clients", type=int, default=24)
    arguments = parser.parse_args()
    try:
        answers = put_under_load(
            arguments.url, num_requests=arguments.requests, num_clients=arguments.clients
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        sys.exit(f"{arguments.url}: {reason}; start the server first, and give its URL")
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    print(f"{len(answers)} answers with {tokens} tokens")


if __name__ == "__main__":
    main()
