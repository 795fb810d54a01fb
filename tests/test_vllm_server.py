"""A server that fails says why, and leaves no process behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from vllm_server import ServerError, serve

# Answers like vLLM's API server, and has a child, as that has the engine core.
_SERVER = """
import http.server, json, os, subprocess, sys

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(os.environ["CHILD"], "w").write(str(child.pid))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, b"")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["max_tokens"] > 8:
            self.answer(400, b"too long")
        else:
            self.answer(200, json.dumps(body).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

port = next(a.partition("=")[2] for a in sys.argv if a.startswith("--port="))
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


class Vllm:
    """A stand-in for the `vllm` command."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = folder / "model"
        self.log = folder / "server.log"
        self.child = folder / "child"
        self.environ = {"CHILD": str(self.child)}
        self._command = folder / "vllm"
        self._python = sys.executable
        # The command is looked for beside the interpreter.
        monkeypatch.setattr(sys, "executable", str(folder / "python"))

    def does(self, program: str) -> None:
        self._command.write_text(f"#!{self._python}\n{program}", encoding="utf-8")
        self._command.chmod(0o755)

    def has_left_a_child(self) -> bool:
        """Tell whether the server's child still lives a moment after the server has ended."""
        pid = int(self.child.read_text(encoding="utf-8"))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
            except (FileNotFoundError, ProcessLookupError):
                return False
            if state.split()[0] == "Z":  # dead, and waiting for init to notice
                return False
            time.sleep(0.02)
        return True


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vllm:
    """Return a `vllm` command to be programmed."""
    return Vllm(tmp_path, monkeypatch)


def test_serves_and_leaves_nothing_behind(vllm: Vllm) -> None:
    """While the block runs, requests are answered; then every process of the server is gone."""
    vllm.does(_SERVER)
    with serve(vllm.model, log=vllm.log, environ=vllm.environ) as server:
        answer = server.complete("hello", 8)
        with pytest.raises(ServerError, match=r"refused a request \(status 400\).*too long"):
            server.complete("hello", 9)
    assert answer == {
        "model": str(vllm.model),
        "prompt": "hello",
        "max_tokens": 8,
        "ignore_eos": True,
    }
    assert server.process.poll() is not None
    assert not vllm.has_left_a_child()
    with pytest.raises(ServerError, match="did not answer"):
        server.complete("hello", 8)


def test_an_error_in_the_block_stops_the_server(vllm: Vllm) -> None:
    """An exception, Ctrl-C among them, passes through and leaves no process."""
    vllm.does(_SERVER)
    with pytest.raises(KeyboardInterrupt), serve(vllm.model, log=vllm.log, environ=vllm.environ):
        raise KeyboardInterrupt
    assert not vllm.has_left_a_child()


def test_says_that_the_server_died(vllm: Vllm) -> None:
    """A server that dies while it starts is noticed at once; its last words are shown."""
    vllm.does("print('no such model'); raise SystemExit(3)")
    with (
        pytest.raises(ServerError, match=r"died .*exit status 3(?s:.*)no such model"),
        serve(vllm.model, log=vllm.log, environ=vllm.environ),
    ):
        pass


def test_says_that_the_server_never_got_ready(vllm: Vllm) -> None:
    """A server that hangs is ended when its time is over."""
    vllm.does(_SERVER.partition("port =")[0] + "print('loading', flush=True); child.wait()")
    waits: list[float] = []
    with (
        pytest.raises(ServerError, match=r"not ready after 3 s(?s:.*)loading"),
        serve(vllm.model, log=vllm.log, environ=vllm.environ, timeout=3, on_wait=waits.append),
    ):
        pass
    assert waits == sorted(waits)
    assert waits
    assert not vllm.has_left_a_child()


def test_the_server_gets_the_environment(vllm: Vllm) -> None:
    """Given variables are added to the caller's own, and no model hub is asked."""
    vllm.does(
        "import os; print(os.environ['CHILD'], os.environ['PATH'], os.environ['HF_HUB_OFFLINE'])\n"
        "raise SystemExit(1)"
    )
    with pytest.raises(ServerError), serve(vllm.model, log=vllm.log, environ=vllm.environ):
        pass
    assert vllm.log.read_text(encoding="utf-8") == f"{vllm.child} {os.environ['PATH']} 1\n"
