"""Start `vllm serve`, talk to it, and leave nothing of it behind.

The demo and the tests use it. A vLLM server is a family of processes (the API server, the engine
core, the workers): they get a session of their own, so that all of them can be ended at once.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["QUICK_START_FLAGS", "Server", "ServerError", "command", "serve"]

QUICK_START_FLAGS = (
    "--load-format=dummy",
    "--dtype=float32",
    "--enforce-eager",
    "--kv-cache-memory-bytes=268435456",
    "--disable-uvicorn-access-log",
    "--enable-prompt-tokens-details",
)
"""Serve random weights on a CPU with the least preparation, and report cached prompt tokens."""

_HOST = "127.0.0.1"
_POLL_S = 0.25
_STOP_S = 30.0
# After a failure nothing is lost by haste, and vLLM would not hear of the end while it loads, nor
# end while a client waits for an answer.
_ABORT_S = 1.0
_REQUEST_S = 300.0


class ServerError(RuntimeError):
    """The server died, never became healthy, or did not answer; the message ends with its log."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        process: The API server; the other processes are in its process group.
        port: Where it listens on the loopback address.
        model: The name by which requests ask for the model.
        log: What its processes print.
    """

    process: subprocess.Popen[bytes]
    port: int
    model: str
    log: Path

    def complete(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """Have exactly `max_tokens` tokens generated after a prompt.

        Returns:
            The answer of `/v1/completions`.

        Raises:
            ServerError: when the server refuses, or is gone.
        """
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
        }
        try:
            status, answer = self._ask("POST", "/v1/completions", body, timeout=_REQUEST_S)
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"the server did not answer a request ({error!r})") from error
        if status != http.client.OK:
            raise ServerError(f"the server refused a request (status {status}): {answer[:500]!r}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def wait_until_healthy(self, timeout: float, on_wait: Callable[[float], object]) -> None:
        """Wait for the server to accept requests.

        Args:
            timeout: Seconds until that counts as a failure.
            on_wait: Called again and again with the seconds waited so far.

        Raises:
            ServerError: when the server died or the time is over.
        """
        started = time.monotonic()
        while True:
            status = self.process.poll()
            if status is not None:
                raise self._error(f"the server died while it was starting (exit status {status})")
            with suppress(OSError, http.client.HTTPException):
                if self._ask("GET", "/health", None, timeout=5)[0] == http.client.OK:
                    return
            waited = time.monotonic() - started
            if waited > timeout:
                raise self._error(f"the server was not ready after {waited:.0f} s")
            on_wait(waited)
            time.sleep(_POLL_S)

    def stop(self, patience: float = _STOP_S) -> None:
        """Ask the server to end, as an operator does (SIGTERM), and make sure that it did.

        Args:
            patience: Seconds until it is killed.
        """
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        # Whatever is left of the group: nothing, after an orderly end.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, *, timeout: float
    ) -> tuple[int, bytes]:
        # http.client, unlike urllib, leaves proxies aside: a loopback address is behind none.
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=timeout)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _error(self, what: str) -> ServerError:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"    {line}" for line in lines[-20:])
        return ServerError(f"{what}; the last lines of {self.log}:\n{tail}")


def command(model: Path, flags: Sequence[str] = (), module: str | None = None) -> list[str]:
    """Return the command that serves a model, but for the port.

    Args:
        model: Folder of the model.
        flags: Further arguments of `vllm serve`, on top of `QUICK_START_FLAGS`.
        module: Start this module of vLLM's with `python -m` instead of `vllm serve`.
    """
    start = (
        [sys.executable, "-m", module, "--model"]
        if module
        else [str(Path(sys.executable).with_name("vllm")), "serve"]
    )
    return [*start, str(model), f"--host={_HOST}", *QUICK_START_FLAGS, *flags]


@contextmanager
def serve(
    model: Path,
    *,
    log: Path,
    environ: Mapping[str, str],
    flags: Sequence[str] = (),
    module: str | None = None,
    timeout: float = 300,
    on_wait: Callable[[float], object] = lambda _waited: None,
) -> Iterator[Server]:
    """Serve a model on a free port of the loopback address until the block ends.

    Args:
        model: Folder of the model.
        log: File for what the server prints; written anew.
        environ: Variables to set for the server, on top of this process's own.
        flags: See `command`.
        module: See `command`.
        timeout: Seconds that the server may take to become healthy.
        on_wait: Called again and again with the seconds waited for that.

    Raises:
        ServerError: when it does not become healthy.
    """
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port = free.getsockname()[1]
    # Nothing is to be fetched from a model hub, and nobody is to be told of the run.
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a command of our own
            [*command(model, flags, module), f"--port={port}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **quiet, **environ},
            start_new_session=True,
        )
    server = Server(process=process, port=port, model=str(model), log=log)
    patience = _ABORT_S
    try:
        server.wait_until_healthy(timeout, on_wait)
        yield server
        patience = _STOP_S
    finally:
        # A second Ctrl-C must not leave half a server behind; stopping is bounded in time.
        with _without_interrupts():
            server.stop(patience)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM, where this thread may decide that."""
    try:
        before = {
            number: signal.signal(number, signal.SIG_IGN)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
