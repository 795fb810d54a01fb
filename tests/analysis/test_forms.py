"""Every command reads every form of a log, and says the same of each."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import fsspec
import pytest
import zstandard
from synthetic import records, write_log

from sched_profiler.analysis import convert, load
from sched_profiler.cli import main

NUM_RECORDS = 900


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the same records in each form, by the name of the form."""
    folder = tmp_path_factory.mktemp("forms")
    written = list(records(NUM_RECORDS))
    log = write_log(folder / "log.jsonl", written)
    plain = log.read_bytes()
    (folder / "log.jsonl.gz").write_bytes(gzip.compress(plain))
    (folder / "log.jsonl.zst").write_bytes(zstandard.compress(plain))
    convert(log, out=folder / "log.parquet")
    parts = folder / "parts"
    parts.mkdir()
    third = NUM_RECORDS // 3
    write_log(parts / "0.jsonl", written[:third])
    middle = write_log(folder / "1.jsonl", written[third : 2 * third])
    (parts / "1.jsonl.gz").write_bytes(gzip.compress(middle.read_bytes()))
    last = write_log(folder / "2.jsonl", written[2 * third :])
    (parts / "2.jsonl.zst").write_bytes(zstandard.compress(last.read_bytes()))
    store = fsspec.filesystem("memory")
    store.pipe("/forms/log.jsonl.gz", gzip.compress(plain))
    store.pipe("/forms/log.parquet", (folder / "log.parquet").read_bytes())
    shutil.copytree(parts, folder / "deep/one")
    return {
        "plain": str(log),
        "gzip": str(folder / "log.jsonl.gz"),
        "zstd": str(folder / "log.jsonl.zst"),
        "Parquet": str(folder / "log.parquet"),
        "a folder": str(parts),
        "a folder of folders": str(folder / "deep"),
        "a glob": str(parts / "*.jsonl*"),
        "a URL": "memory://forms/log.jsonl.gz",
        "a URL of Parquet": "memory://forms/log.parquet",
    }


def without_places(found: object) -> object:
    """Return what a command says without names of logs, and without the last digits of sums.

    The names are not the same, and sums depend on where a log is divided.
    """
    if isinstance(found, dict):
        return {
            name: without_places(value)
            for name, value in found.items()
            if name not in {"label", "side", "warnings"}
        }
    if isinstance(found, float):
        return float(f"{found:.9g}")
    return [without_places(value) for value in found] if isinstance(found, list) else found


@pytest.mark.parametrize(
    "command",
    [
        ["analyze", "--json"],
        ["slow", "--json", "--schedule-over", "0.1ms"],
        ["fit", "--json"],
        ["verify", "--json"],
        ["validate", "--json"],
        ["compare", "--json", None],
    ],
    ids=lambda command: command[0],
)
def test_every_form_gives_the_same_answer(
    forms: dict[str, str], command: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    """`compare` sets the form beside the plain log; `validate` is about lines."""
    answers = {}
    for form, log in forms.items():
        name, *options = [forms["plain"] if word is None else word for word in command]
        if name == "validate" and "Parquet" in form:
            assert main([name, log, *options]) == 2
            assert "is Parquet, which has no lines; name the log" in capsys.readouterr().err
            continue
        assert main([name, log, *options]) == 0, form
        answers[form] = without_places(json.loads(capsys.readouterr().out))
    assert answers["plain"]
    for form, answer in answers.items():
        assert answer == answers["plain"], form


@pytest.mark.parametrize("command", ["trace", "report", "convert"])
def test_every_form_gives_the_same_file(
    forms: dict[str, str], tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page is asked for its title: it names its logs otherwise."""
    made = {}
    for number, (form, log) in enumerate(forms.items()):
        if command == "convert" and "Parquet" in form:
            continue  # that it is
        out = tmp_path / f"{number}.{'parquet' if command == 'convert' else 'out.html'}"
        if command == "trace":
            out = out.with_suffix(".json")
        arguments = [str(out)] if command == "convert" else ["-o", str(out)]
        assert main([command, log, *arguments]) == 0, form
        capsys.readouterr()
        if command == "trace":
            made[form] = json.loads(out.read_text(encoding="utf-8"))["traceEvents"]
        elif command == "convert":
            made[form] = load(out).drop(columns="log", errors="ignore").to_csv()
        else:
            made[form] = f"{NUM_RECORDS} batches" in out.read_text(encoding="utf-8")
    assert made["plain"]
    for form, found in made.items():
        assert found == made["plain"], form
