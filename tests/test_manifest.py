"""What is constant for a run stands beside its log, and says how the run went."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import attrs
import jsonschema
import pytest
from engine_under_test import only_file, serve

from sched_profiler import (
    BatchProfiler,
    ConsoleSink,
    JsonlSink,
    LogError,
    MemorySink,
    RunFacts,
    RunManifest,
    SettingError,
    TeeSink,
)
from sched_profiler.manifest import parse_manifest, write_manifest
from sched_profiler.testing import FakeClock
from sched_profiler.verify import verify

SCHEMA = json.loads(
    (Path(__file__).parents[1] / "schema" / "run-manifest-v1.schema.json").read_text()
)
FACTS: RunFacts = {
    "engine": "custom",
    "engine_version": "1.2",
    "model": "/models/tiny",
    "max_num_batched_tokens": 256,
    "max_num_seqs": 16,
    "long_prefill_token_threshold": 0,
    "max_model_len": 2048,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
    "scheduling_policy": "fcfs",
    "block_size": 16,
    "num_blocks": 1000,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 2,
    "async_scheduling": True,
}


def manifest_in(folder: Path) -> RunManifest:
    """Return the one manifest in a folder."""
    path = only_file(folder, "*.run.json")
    return parse_manifest(path.read_bytes(), path.name)


def test_the_schema_has_the_fields_of_the_class_with_its_types() -> None:
    """Both ways, in the same order, with the same words."""
    names = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
    assert list(SCHEMA["properties"]) == [field.name for field in attrs.fields(RunManifest)]
    assert SCHEMA["required"] == list(SCHEMA["properties"])
    for field in attrs.fields(RunManifest):
        described = SCHEMA["properties"][field.name]
        assert described["description"] == field.metadata["doc"]
        if field.name == "manifest_version":
            assert described["const"] == field.default
            continue
        if field.name == "num_missing_elsewhere":
            assert (field.type, described["type"]) == (dict[str, int], "object")
            assert described["additionalProperties"] == {"type": "integer", "minimum": 0}
            continue
        kinds = getattr(field.type, "__args__", (field.type,))
        types = described["type"]
        assert (types if isinstance(types, list) else [types]) == [names[kind] for kind in kinds]


def test_a_manifest_is_valid_against_the_schema_and_comes_back(tmp_path: Path) -> None:
    """With all facts, and with none."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for number, facts in enumerate((FACTS, RunFacts())):
        folder = tmp_path / str(number)
        with BatchProfiler(JsonlSink(folder / "log.jsonl"), facts=facts) as profiler:
            serve(profiler, 3)
        path = only_file(folder, "*.run.json")
        validator.validate(json.loads(path.read_bytes()))
        manifest = manifest_in(folder)
        write_manifest(tmp_path / "again", manifest)
        assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_manifest_says_what_and_where_the_run_was(tmp_path: Path) -> None:
    """The facts of the engine, and what we know ourselves."""
    clock = FakeClock()
    profiler = BatchProfiler(
        JsonlSink(tmp_path / "log.jsonl", clock=clock),
        facts=FACTS,
        dp_rank=1,
        clock=clock,
        background=False,
    )
    serve(profiler, 3)
    clock.advance(5000)
    profiler.close()
    manifest = manifest_in(tmp_path)
    assert {name: getattr(manifest, name) for name in FACTS} == FACTS
    assert (manifest.run_id, manifest.dp_rank) == (profiler.run_id, 1)
    assert (manifest.host, manifest.pid) == (socket.gethostname(), os.getpid())
    assert manifest.log == "log.jsonl"
    assert (manifest.ended, manifest.updated) == (1_700_000_005.0, 1_700_000_005.0)
    assert manifest.clean_end
    assert manifest.num_written_records == 3
    assert manifest.num_dropped_records == manifest.num_removed_records == 0


def test_it_is_there_from_the_first_record_on_and_renewed_now_and_then(tmp_path: Path) -> None:
    """A run that was killed has one too, without an end."""
    clock = FakeClock()
    profiler = BatchProfiler(
        JsonlSink(tmp_path / "log.jsonl", clock=clock), clock=clock, background=False
    )
    assert list(tmp_path.iterdir()) == []
    serve(profiler, 1)
    profiler.flush()
    assert manifest_in(tmp_path).num_written_records == 1
    serve(profiler, 1)
    profiler.flush()
    assert manifest_in(tmp_path).num_written_records == 1, "not at every flush"
    clock.advance(10_000)
    serve(profiler, 1)
    profiler.flush()
    manifest = manifest_in(tmp_path)
    assert manifest.num_written_records == 3
    assert manifest.updated == manifest.started + 10
    assert manifest.ended is None
    assert not manifest.clean_end
    profiler.close()


def test_dropped_records_are_counted(tmp_path: Path) -> None:
    """Those that could not be made as well, also when they were the last."""
    with BatchProfiler(JsonlSink(tmp_path / "log.jsonl")) as profiler:
        serve(profiler, 2)
        batch = profiler.begin()
        batch.scheduled(
            prefill_chunk_sizes=[],
            decode_chunk_sizes=[1],
            num_waiting_reqs=0,
            num_running_reqs=1,
            kv_cache_usage=7.5,
        )
        batch.finished()
    manifest = manifest_in(tmp_path)
    assert (manifest.num_written_records, manifest.num_dropped_records) == (2, 1)


def test_runs_that_share_a_log_have_a_manifest_each(tmp_path: Path) -> None:
    """And a tee passes the run on."""
    console = ConsoleSink(print_line=lambda _: None)
    for _ in range(2):
        sink = TeeSink(JsonlSink(tmp_path / "log.jsonl"), console)
        with BatchProfiler(sink) as profiler:
            serve(profiler, 1)
        assert (tmp_path / f"log.{profiler.run_id}.run.json").exists()
    assert len(list(tmp_path.glob("*.run.json"))) == 2


def test_what_the_log_lost_is_counted_whatever_other_sinks_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the records that come after it, and in the manifest; a second log counts its own."""
    monkeypatch.setattr("sched_profiler.sinks.jsonl._KEPT_BYTES", 20_000)
    monkeypatch.setattr("sched_profiler.sinks.jsonl._FLUSH_BYTES", 10_000)
    folder, memory = tmp_path / "logs", MemorySink()
    folder.touch()
    second = tmp_path / "second"
    sink = TeeSink(memory, JsonlSink(folder / "log.jsonl"), JsonlSink(second / "log.jsonl"))
    profiler = BatchProfiler(sink, background=False)
    serve(profiler, 100)
    assert not profiler.flush()
    folder.unlink()
    serve(profiler, 10)
    # The last batches reach no sink at all.
    for _ in range(3):
        next(profiler.batch_ids)
        profiler.writer.drop()
    assert profiler.close()
    assert [record.batch_id for record in memory.records] == list(range(110))
    lost = profiler.num_dropped_records
    assert memory.records[-1].num_dropped_records == lost - 3 > 0
    manifest = manifest_in(folder)
    assert manifest.num_written_records + manifest.num_dropped_records == 113
    (run,) = verify(folder).runs
    assert run.num_missing == run.num_dropped == lost
    assert (run.num_unexplained, run.end) == (0, "clean")
    assert manifest_in(second).num_dropped_records == 3
    (run,) = verify(second).runs
    assert (run.num_records, run.num_missing, run.num_unexplained) == (110, 3, 0)


def test_what_one_of_several_sinks_keeps_back_at_the_end_is_counted(tmp_path: Path) -> None:
    """The close says that not all was written, on either writer."""
    for background in (False, True):
        folder = tmp_path / str(background)
        folder.touch()
        sink = TeeSink(MemorySink(), JsonlSink(folder / "log.jsonl"))
        profiler = BatchProfiler(sink, background=background)
        serve(profiler, 5)
        assert not profiler.close()
        assert profiler.num_dropped_records == 5


def test_a_manifest_that_cannot_be_written_does_not_cost_a_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once."""
    profiler = BatchProfiler(JsonlSink(tmp_path / "log.jsonl"), background=False)
    (tmp_path / f"log.{profiler.run_id}.run.json").mkdir()
    serve(profiler, 3)
    assert profiler.close()
    assert (tmp_path / "log.jsonl").read_bytes().count(b"\n") == 3
    assert caplog.text.count("run manifest") == 1
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"modell": "x"}, "no fact of a run named modell; there are async_scheduling, block_size"),
        ({"max_num_seqs": "16"}, "max_num_seqs is '16'; expected int"),
        ({"async_scheduling": 1}, "async_scheduling is 1; expected bool"),
        ({"block_size": True}, "block_size is True; expected int"),
    ],
)
def test_a_wrong_fact_is_an_error_at_once(facts: dict[str, object], message: str) -> None:
    """Before the first batch; sinks without a manifest do not look at them."""
    with pytest.raises(SettingError, match=message):
        BatchProfiler(JsonlSink("never"), facts=facts)  # type: ignore[arg-type]
    BatchProfiler(MemorySink(), facts=facts).close()  # type: ignore[arg-type]


def test_a_model_that_is_named_by_a_url_is_named_without_credentials(tmp_path: Path) -> None:
    """As is everything else that might be one."""
    facts: RunFacts = {"model": "s3://key:secret@models/llama?token=abc"}
    with BatchProfiler(JsonlSink(tmp_path / "log.jsonl"), facts=facts) as profiler:
        serve(profiler, 1)
    assert manifest_in(tmp_path).model == "s3://models/llama"


GOOD = {
    "manifest_version": 1,
    "run_id": "a",
    "log": "log.jsonl",
    "started": 1,
    "updated": 2.5,
    "host": "h",
    "pid": 1,
    "python_version": "3",
    "sched_profiler_version": "0",
}


def test_a_manifest_of_a_later_minor_version_is_read() -> None:
    """What is missing has its default, what is unknown is ignored."""
    text = json.dumps(GOOD | {"colour": "red"}).encode()
    assert parse_manifest(text, "m").num_written_records == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "m is no run manifest: not JSON"),
        ("[]", "a list instead of a JSON object"),
        (json.dumps(GOOD | {"manifest_version": 2}), "manifest_version 2 is newer than 1; upgrade"),
        (json.dumps({"run_id": "a"}), "it lacks log"),
        (json.dumps(GOOD | {"pid": "x"}), "pid is 'x'"),
        (json.dumps(GOOD | {"num_missing_elsewhere": {"A": "1"}}), "num_missing_elsewhere is {'A"),
    ],
)
def test_what_is_no_manifest_is_an_error_that_says_why(text: str, message: str) -> None:
    """Naming the file."""
    with pytest.raises(LogError, match=message) as error:
        parse_manifest(text.encode(), "m")
    assert re.search("; (copy it again, or move it away|upgrade sched-profiler)$", str(error.value))
