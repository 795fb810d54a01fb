"""A real Prometheus server for tests, as the machine has it, on loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from s3_server import free_ports

__all__ = ["Prometheus", "dashboard_queries", "is_installed", "prometheus"]

_PATIENCE_S = 60.0
ROOT = Path(__file__).parents[1]


@attrs.frozen
class Prometheus:
    """A server that scrapes."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of the HTTP API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError((parameters, error.read())) from None

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the value of each series that an expression makes now."""
        data = self.ask("query", query=expression)
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def value(self, expression: str) -> float:
        """Return the value of the only series that an expression makes.

        On a busy machine the last scrape may have come too late: then the next one tells.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, (expression, self.ask("targets"))
            time.sleep(0.05)
        ((_, value),) = found
        return value

    def wait_for(self, expression: str) -> None:
        """Wait until a condition has a series for which it holds."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.query(expression):
            assert time.monotonic() < deadline, (expression, self.ask("targets"))
            time.sleep(0.05)


def is_installed() -> bool:
    """Tell whether this machine has the server."""
    return shutil.which("prometheus") is not None


@contextmanager
def prometheus(folder: Path, config: str) -> Iterator[Prometheus]:
    """Run a server with a configuration; its data is in the folder, and it ends with the block."""
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    (port,) = free_ports(1)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while not _is_ready(url):
            printed = (folder / "prometheus.log").read_text()
            assert process.poll() is None, printed
            assert time.monotonic() < deadline, printed
            time.sleep(0.05)
        yield Prometheus(url)
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
            return True
    except OSError:
        return False


def dashboard_queries() -> list[str]:
    """Return the expressions of the dashboard, with its variables filled in as Grafana does."""
    text = (ROOT / "examples/grafana_dashboard.json").read_text(encoding="utf-8")
    queries = [
        target["expr"].replace("$dp_rank", ".*").replace("$__rate_interval", "1m")
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
    ]
    assert not any("$" in query for query in queries)
    return queries
