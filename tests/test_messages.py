"""What is said in the log of the program holds no credential, whoever's error it tells of."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sched_profiler
from sched_profiler.boundary import Boundary
from sched_profiler.messages import logger


def fail_to_connect() -> None:
    """Raise what a client of somebody else's raises: an error that says too much, of another."""
    cause = PermissionError("tried planted-token and Basic planted-header")
    address = "https://planted-user:planted-password@proxy/?key=planted-query"
    raise ConnectionError(f"cannot reach {address}; it takes planted-other") from cause


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "planted-token")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20planted-header,x=y")
    monkeypatch.setenv("HTTPS_PROXY", "http://planted-name:planted-other@proxy:3128")


@pytest.mark.usefixtures("_secrets")
def test_a_failure_is_told_with_its_traceback_and_without_credentials(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those of URLs and of the environment; in the message, and in all errors of the traceback."""
    boundary = Boundary("sink x")
    for _ in range(3):
        boundary.guard(fail_to_connect)
    assert "planted" not in caplog.text
    assert caplog.text.count("Traceback (most recent call last)") == 1
    assert "PermissionError: tried *** and ***" in caplog.text
    assert "ConnectionError: cannot reach https://***@proxy/?*** it takes ***" in caplog.text
    assert "in fail_to_connect" in caplog.text
    assert "(last: cannot reach https://***@proxy/?*** it takes ***)" in caplog.text


def test_an_error_that_cannot_be_printed_does_not_cost_the_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor does it get out: the engine would end up with it."""

    class Unprintable(Exception):  # noqa: N818 - it is as bad as it gets
        def __str__(self) -> str:
            raise ValueError("no text")

    def fail() -> None:
        raise Unprintable

    boundary = Boundary("sink x")
    for _ in range(3):
        assert not boundary.guard(fail)
    assert "sink x failed; serving goes on" in caplog.text
    assert "Unprintable: <exception str() failed>" in caplog.text
    assert "is switched off" in caplog.text


def test_a_message_without_credentials_is_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever its arguments are."""
    logger.warning("%d of %s", 3, ["s3://bucket/a/"])
    assert caplog.messages == ["3 of ['s3://bucket/a/']"]


def test_every_error_says_what_to_do() -> None:
    """After a semicolon, or as what was expected; only one that passes another on does not."""
    kinds = {"LogError", "SettingError", "SchedProfilerError"}
    package = Path(sched_profiler.__file__).parent
    found, lacking = 0, []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in kinds):
                continue
            if not isinstance(message := node.args[0], ast.JoinedStr | ast.Constant):
                continue
            texts = [each.value for each in ast.walk(message) if isinstance(each, ast.Constant)]
            text = "".join(map(str, texts))
            found += 1
            if text != ": " and "; " not in text and "expected" not in text:
                lacking.append(f"{path.relative_to(package)}:{node.lineno}: {text}")
    assert found > 40
    assert not lacking
