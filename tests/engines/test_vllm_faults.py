"""Whatever happens to the records, real vLLM generates what it generates unprofiled, as fast."""

from __future__ import annotations

import itertools
import json
import signal
import time
from pathlib import Path
from statistics import median

import attrs
import pytest
from faulty import ENDS
from faulty_vllm import Answer, Faults, faulty, told, with_group
from machine import lacks

from sched_profiler.reader import read_records
from sched_profiler.verify import Report, verify

pytestmark = pytest.mark.vllm

PLANTED = (
    "planted-user",
    "planted-password",
    "planted-key",
    "planted-access-key-id",
    "planted-secret-key",
)


def test_tokens_are_those_of_an_unprofiled_engine_whatever_happens(faults: Faults) -> None:
    """Each fault has its own generation with the same seeds."""
    expected = faults.tokens["not profiled"]
    assert len({tuple(tokens) for tokens in expected}) == len(expected), "they are told apart"
    assert len(faults.tokens) >= 22
    for fault, tokens in faults.tokens.items():
        assert tokens == expected, fault


def test_throughput_is_that_of_a_profiler_that_is_well(faults: Faults) -> None:
    """Whatever its sink, its disk or its store does: in short turns, one after the other.

    Other programs run here too, and hit some of the turns of each mode. What is slower by itself is
    so in its best turn, and also in the middle one of the turns beside an unprofiled one. How much
    it is to the percent is for `make faults`, on a quiet machine.
    """
    unprofiled = faults.times["not profiled"]
    assert len(faults.times) >= 10
    for mode, times in faults.times.items():
        best = min(unprofiled) / min(times)
        middle = median(one / other for one, other in zip(unprofiled, times, strict=True))
        assert max(best, middle) > 0.6, (mode, faults.times)


def test_nothing_is_lost_beside_a_sink_that_raises_and_the_log_says_so(faults: Faults) -> None:
    """Once with a traceback, and no credential in it."""
    run = faults.run("raises.jsonl")
    assert (run.num_missing, run.num_dropped, run.end) == (0, 0, "clean")
    assert run.num_records == faults.num_all_batches
    assert "failed; serving goes on" in faults.printed
    assert "no answer from https://***@host/?***" in faults.printed
    assert f"{run.num_records} records did not reach sink <faulty.Raising" in faults.printed


def test_a_slow_sink_gets_all_of_it_late(faults: Faults) -> None:
    """And so does the log beside it."""
    run = faults.run("slow.jsonl")
    assert (run.num_missing, run.end) == (0, "clean")


def test_a_log_beside_a_sink_that_hangs_is_complete(faults: Faults) -> None:
    """It has its end; what the other sink lacks is in the manifest, and in vLLM's log."""
    run = faults.run("hangs.jsonl")
    num_batches = faults.num_all_batches
    assert (run.num_records, run.num_missing, run.num_dropped) == (num_batches, 0, 0)
    assert run.end == "clean"
    manifest = json.loads(next(faults.folder.glob("hangs.*.run.json")).read_bytes())
    assert manifest["num_missing_elsewhere"] == {"Hanging": num_batches}
    assert f"{num_batches} records did not reach sink <faulty.Hanging" in faults.printed


@pytest.mark.parametrize("name", ["full", "read-only"])
def test_a_disk_that_takes_nothing_is_said_once(faults: Faults, name: str) -> None:
    """Of the full one, what fits is there and the rest is counted; nothing is made on the other."""
    disk = faults.folder / name
    if not (faults.folder / "full").exists():
        lacks("only root may mount a file system")
    num_batches = faults.num_batches
    if name == "full":
        num_batches = faults.num_all_batches
        num_records = len(list(read_records(disk)))
        assert 0 < num_records < num_batches
        assert f"{num_batches - num_records} batches have no record" in faults.printed
    else:
        assert not list(disk.iterdir())
        assert f"{num_batches} batches have no record" in faults.printed


def test_a_disk_that_is_freed_gets_every_record(faults: Faults) -> None:
    """Those of the time in which it was full as well."""
    if not (faults.folder / "full").exists():
        lacks("only root may mount a file system")
    run = faults.run("freed/log.jsonl")
    assert (run.num_records, run.num_missing, run.end) == (2 * faults.num_batches, 0, "clean")


def test_a_queue_that_is_full_drops_batches_and_verify_explains_all_of_them(faults: Faults) -> None:
    """To the batch."""
    run = faults.run("queue.jsonl")
    assert run.num_missing == run.num_dropped > 0
    assert run.num_records + run.num_dropped == faults.num_all_batches
    assert (run.num_unexplained, run.num_duplicates, run.end) == (0, 0, "clean")


def test_a_folder_that_is_removed_while_an_engine_writes_is_made_again(faults: Faults) -> None:
    """What was in it is gone, and verify says which batches."""
    run = faults.run("removed/log.jsonl")
    ((first, last),) = run.gaps
    assert first == 0
    assert faults.num_batches - 1 <= last < 2 * faults.num_batches
    assert run.num_missing == run.num_unexplained == last + 1
    assert run.num_records == 3 * faults.num_batches - run.num_missing
    assert run.end == "clean"


@pytest.mark.parametrize("log", ["fork.jsonl", "clock.jsonl"])
def test_neither_a_fork_nor_a_clock_that_is_set_back_costs_a_record(
    faults: Faults, log: str
) -> None:
    """The order is that of the batches, and after the fork each is there once."""
    run = faults.run(log)
    assert (run.num_records, run.num_missing) == (2 * faults.num_batches, 0)
    assert (run.num_duplicates, run.end) == (0, "clean")
    records = list(read_records(faults.folder / log))
    assert [record.batch_id for record in records] == list(range(len(records)))
    steps = [b.timestamp - a.timestamp for a, b in itertools.pairwise(records)]
    assert sum(step < -3000 for step in steps) == (log == "clock.jsonl")
    assert all(record.model_run_duration_ms for record in records)


@pytest.mark.parametrize("store", ["gone", "deaf", "credentials", "bucket"])
def test_what_a_store_does_not_take_waits_in_the_spool(faults: Faults, store: str) -> None:
    """All of it, whether it is dead, hangs, does not know us or has no such bucket."""
    run = faults.run(store)
    assert (run.num_records, run.num_missing) == (faults.num_all_batches, 0)
    assert (run.num_dropped, run.end) == (0, "clean")
    bucket = "no-such" if store == "bucket" else "bucket"
    assert f"s3://{bucket}/{store}/ is not reached in time" in faults.printed


def test_a_store_that_is_killed_in_an_upload_and_started_again_gets_every_record(
    faults: Faults,
) -> None:
    """A real one; nothing is left in the spool."""
    run = faults.run("restarted-uploaded")
    assert (run.num_records, run.num_missing) == (3 * faults.num_batches, 0)
    assert (run.num_duplicates, run.end) == (0, "clean")
    assert not list((faults.folder / "restarted").glob("*.jsonl*"))


@pytest.mark.parametrize("code", ["SlowDown", "ExpiredToken"])
def test_what_a_store_refuses_for_a_while_arrives_later(faults: Faults, code: str) -> None:
    """Too many requests, and credentials that are renewed."""
    assert not list((faults.folder / code).glob("*.gz"))
    assert f"records wait in {faults.folder / code} and uploading is tried again" in faults.printed
    assert f"s3://bucket/{code}/ is reached again" in faults.printed


def test_all_that_was_uploaded_is_whole(faults: Faults) -> None:
    """Two runs, each of two generations."""
    runs = verify(faults.folder / "uploaded").runs
    assert len(runs) == 2
    for run in runs:
        assert run.num_records == 2 * faults.num_batches
        assert (run.num_missing, run.num_duplicates, run.end) == (0, 0, "clean")


def test_no_credential_is_in_what_the_engine_printed_or_left(faults: Faults) -> None:
    """Those of the environment, and those that a sink of somebody else puts into its error."""
    paths = [path for path in faults.folder.rglob("*.*") if "seaweed" not in path.parts]
    left = [path.read_bytes() for path in paths if path.is_file()]
    for secret in PLANTED:
        assert secret not in faults.printed
        assert not any(secret.encode() in content for content in left)


@attrs.frozen
class Workers:
    """What engine cores left that had the same log and came to one of `ENDS` each.

    Attributes:
        tokens: what they generated before they were put under load.
        received: what their clients were streamed from then on, until it ended.
        batches: when each batch was scheduled, as the scheduler itself noted.
        reports: what verify says of their files.
        printed: their log.
    """

    tokens: dict[str, list[list[int]]]
    received: dict[str, list[Answer]]
    batches: dict[str, list[float]]
    reports: dict[str, Report]
    printed: str


def started(log: Path) -> float:
    """Return when the first batch of a log was formed."""
    return next(read_records(log)).timestamp


@pytest.fixture(scope="module")
def workers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workers:
    """Let them come to their ends; interrupt the last as a terminal does, twice."""
    folder = tmp_path_factory.mktemp("workers")
    with faulty(model, folder, "workers") as process:
        deadline = time.monotonic() + 280
        while {"ending": "interrupted twice"} not in told(folder):
            assert process.poll() is None, (folder / "printed").read_text()[-5000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with_group(process, signal.SIGINT)
        time.sleep(0.2)
        with_group(process, signal.SIGINT)
        # When the process itself comes to its end is vLLM's affair.
        logs = sorted(folder.glob("log*.jsonl"), key=started)
        while verify(logs[-1]).runs[0].end != "clean":
            assert time.monotonic() < deadline, (folder / "printed").read_text()[-5000:]
            time.sleep(0.2)
    return Workers(
        {line["fault"]: line["tokens"] for line in told(folder) if "fault" in line},
        {path.stem: received(path) for path in folder.glob("*.received")},
        {
            path.stem: [float(line) for line in path.read_text().splitlines()]
            for path in folder.glob("*.batches")
        },
        {name: verify(log) for name, log in zip(ENDS, logs, strict=True)},
        (folder / "printed").read_text(),
    )


def received(path: Path) -> list[Answer]:
    """Return the answers that a client noted piece by piece."""
    answers: dict[str, Answer] = {}
    for turn_and_number, tokens in map(json.loads, path.read_text().splitlines()):
        number = int(turn_and_number.split()[1])
        answers.setdefault(turn_and_number, (number, []))[1].extend(tokens)
    return list(answers.values())


def test_a_killed_engine_core_loses_at_most_its_last_second(workers: Workers) -> None:
    """Under load; the log can be read, and verify says that there was no end."""
    (run,), batches = workers.reports["killed"].runs, workers.batches["killed"]
    assert (run.gaps, run.num_duplicates, run.num_dropped, run.end) == ([], 0, 0, "none")
    assert workers.reports["killed"].num_half_written_lines <= 1
    assert 100 < run.num_records <= len(batches)
    assert all(batches[-1] - lost <= 1.0 for lost in batches[run.num_records :])


def test_an_engine_core_that_fails_loses_nothing(workers: Workers) -> None:
    """In a process of its own: the error is the engine's, and each batch has its record."""
    (run,), batches = workers.reports["failed"].runs, workers.batches["failed"]
    assert "RuntimeError: the scheduler fails, says the test" in workers.printed
    assert (run.num_missing, run.num_duplicates, run.num_dropped) == (0, 0, 0)
    assert run.num_records == len(batches) > 100
    assert run.end == "clean"


@pytest.mark.parametrize("end", ["interrupted", "interrupted twice"])
def test_an_engine_that_is_interrupted_loses_nothing(workers: Workers, end: str) -> None:
    """The core alone, or all processes; a batch that is just being formed at that time is none."""
    (run,), batches = workers.reports[end].runs, workers.batches[end]
    assert (run.num_missing, run.num_duplicates, run.num_dropped) == (0, 0, 0)
    assert run.num_records > 100
    assert len(batches) - run.num_records in (0, 1)
    assert run.end == "clean"


def test_tokens_before_an_end_are_those_of_an_unprofiled_engine(
    workers: Workers, faults: Faults
) -> None:
    """The same prompts and seeds, in another process."""
    assert workers.tokens == dict.fromkeys(ENDS, faults.tokens["not profiled"])


@pytest.mark.parametrize("end", ENDS)
def test_tokens_until_the_end_are_those_of_an_unprofiled_engine(
    workers: Workers, faults: Faults, end: str
) -> None:
    """All that the clients got, of whole answers and of those in which the end came."""
    assert sum(len(tokens) for _, tokens in workers.received[end]) > 1000
    assert faults.differing(workers.received[end]) == []
