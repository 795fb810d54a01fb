"""Reading logs of any length: alike `load`, in parts, on a cluster and from other formats."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import batch, records, seed_record, write_log

from sched_profiler import reader
from sched_profiler.analysis import (
    Digest,
    Summary,
    convert,
    find_anomalies,
    load,
    outline,
    plot_overview,
    scan,
    sketch,
    summarize,
)
from sched_profiler.analysis import rows as rows_module
from sched_profiler.analysis.digest import COLUMNS, OverlapError
from sched_profiler.analysis.rows import read_rows
from sched_profiler.codec import encode
from sched_profiler.errors import LogError, SchedProfilerError
from sched_profiler.log_files import find_logs
from sched_profiler.reader import Span, Tally, read_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sched_profiler import BatchRecord


def assert_same(one: Summary, other: Summary) -> None:
    """Compare summaries, but for the rounding of sums."""
    for (name, value), expected in zip(
        one.to_dict().items(), other.to_dict().values(), strict=True
    ):
        if isinstance(expected, dict | float):
            assert value == pytest.approx(expected), name
        else:
            assert value == expected, name


def assert_same_charts(one: Digest, other: Digest) -> None:
    """Compare all that charts are drawn from."""
    assert one.outline.num_rows == other.outline.num_rows
    assert (one.outline.rows is None) == (other.outline.rows is None)
    for series in outline.SERIES:
        for mine, its in zip(
            one.outline.trend.counts(series), other.outline.trend.counts(series), strict=True
        ):
            assert mine.tolist() == its.tolist()
    for mine, its in zip(one.outline.density.counts(), other.outline.density.counts(), strict=True):
        assert mine.tolist() == its.tolist()
    for name, values in one.durations.items():
        for mine, its in zip(values.values(), other.durations[name].values(), strict=True):
            assert mine.tolist() == its.tolist()


@pytest.mark.parametrize("named", [True, False])
def test_a_scan_agrees_with_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    """Runs, lives, lines out of order and batches that come twice are taken alike."""
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 5_000)
    rng = random.Random(7)
    lives: list[BatchRecord] = []
    for life in range(4):
        some = list(
            records(
                rng.randrange(20, 90), seed=life, run_id=f"life{life % 3}", start=1e6 * (life + 1)
            )
        )
        for _ in range(5):
            place = rng.randrange(len(some) - 3)
            some[place], some[place + 2] = some[place + 2], some[place]
        lives += some + ([some[-2]] if life % 2 else [])
    names: Sequence[str] = ("0.jsonl", "1.jsonl")
    for name, part in zip(names, (lives[:100], lives[100:] + lives[30:50]), strict=True):
        if named:
            write_log(tmp_path / name, part)
        else:
            lines = [encode(attrs.evolve(one, run_id=None)) for one in part]
            (tmp_path / name).write_bytes(b"".join(lines))
    digest = scan(tmp_path)
    df = load(tmp_path)
    assert_same(summarize(digest), summarize(df))
    assert_same_charts(digest, Digest.of_frame(df)) if named else None


@st.composite
def logs(draw: st.DrawFn) -> list[BatchRecord]:
    """Return the records of a log: a few runs, with and without names, in a mess."""
    lines: list[BatchRecord] = []
    for run in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([None, "a", "b"]))
        rank = draw(st.sampled_from([None, 0, 1]))
        first = draw(st.integers(0, 5))
        lines += [
            batch(
                number,
                run_id=name,
                dp_rank=rank,
                timestamp=1e9 + 100 * run + number,
                model_run_ms=draw(st.sampled_from([None, 3.0, 40.0])),
                schedule_ms=draw(st.sampled_from([0.0, 0.1, 7.5])),
                prefill=[4] * draw(st.integers(0, 2)),
            )
            for number in range(first, first + draw(st.integers(1, 6)))
        ]
    for _ in range(draw(st.integers(0, 3))):
        one, two = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        lines[one], lines[two] = lines[two], lines[one]
    if draw(st.booleans()):
        lines.append(draw(st.sampled_from(lines)))
    return lines


def digest_of(file: Any, start: int, end: int | None, before: Digest | None = None) -> Digest:
    """Return the digest of a part of a file, as a worker makes it."""
    digest, tally = before or Digest(), Tally()
    for rows in read_rows(file, tally, COLUMNS, span=Span(start, end)):
        digest.add(rows, file.name)
    digest.count_lines(tally)
    return digest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=logs(), data=st.data())
def test_a_digest_is_that_of_its_parts_merged(
    tmp_path: Path, lines: list[BatchRecord], data: st.DataObject
) -> None:
    """Wherever a log is cut, also within a line; parts with a batch in common are refused."""
    log = write_log(tmp_path / "run.jsonl", lines)
    size = log.stat().st_size
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=4)))
    (file,) = find_logs(log)
    few = data.draw(st.sampled_from([3, 65_536]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketch, "MAX_VALUES", few)
        patch.setattr(outline, "MAX_VALUES", few)
        patch.setattr(outline, "MAX_INTERVALS", few)
        patch.setattr(outline, "MAX_ROWS", data.draw(st.sampled_from([4, 100])))
        expected = scan(log)
        merged = Digest()
        for start, end in zip([0, *cuts], [*cuts, None], strict=True):
            part = digest_of(file, start, end)
            try:
                merged.merge(part)
            except OverlapError:
                merged = digest_of(file, start, end, merged)
        assert_same(summarize(merged), summarize(expected))
        assert_same_charts(merged, expected)
    if few == 65_536:
        assert_same(summarize(merged), summarize(load(log)))


@given(cuts=st.sets(st.integers(1, 4000), max_size=5), block=st.sampled_from([1, 100, 10_000]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_is_in_exactly_one_span(tmp_path: Path, cuts: set[int], block: int) -> None:
    """And has the number that it has in the file."""
    log = tmp_path / "run.jsonl"
    lines = [b"#%d%s\n" % (number, b"x" * (number % 97)) for number in range(60)]
    log.write_bytes(b"".join(lines))
    ends = [*sorted(cuts), None]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_BLOCK_BYTES", block)
        (file,) = find_logs(log)
        for start, end in zip([0, *sorted(cuts)], ends, strict=True):
            for one in read_blocks(file, Tally(), Span(start, end)):
                assert one.data.count(b"\n") == one.num_lines
                for index, line in enumerate(one.data.splitlines()):
                    found.append((one.line_number(index), line + b"\n"))
    assert found == list(enumerate(lines, 1))


def test_a_line_cut_by_a_crash_is_tolerated_also_at_the_end_of_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the block, it is known what follows it."""
    log = tmp_path / "run.jsonl"
    whole = encode(batch(0))
    log.write_bytes(whole + whole[:40] + b"\n" + encode(batch(0, run_id="next")))
    for size in range(1, log.stat().st_size, 7):
        monkeypatch.setattr(rows_module, "_BLOCK_BYTES", size)
        digest = scan(log)
        assert (digest.num_batches, digest.num_half_written_lines) == (2, 1)


def test_errors_name_the_line_in_the_file_also_from_the_middle(tmp_path: Path) -> None:
    """A part of a file does not know how many lines are before it, until it is asked."""
    lines = [encode(record) for record in records(100)]
    lines[70] = lines[70].replace(b'"num_decode_reqs":', b'"num_decode_reqs":-0.5,"x":')
    log = tmp_path / "run.jsonl"
    log.write_bytes(b"".join(lines))
    (file,) = find_logs(log)
    with pytest.raises(LogError, match=r"line 71 of .*: num_decode_reqs is -0.5"):
        digest_of(file, log.stat().st_size // 2, None)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a log of two ranks and one of the original feature, in a folder of their own."""
    folder = tmp_path / "logs"
    folder.mkdir()
    write_log(
        folder / "ranks.jsonl",
        (one for rank in range(2) for one in records(3_000, seed=rank, dp_rank=rank)),
    )
    with (folder / "seed.jsonl").open("wb") as stream:
        for life in range(2):
            for one in records(50, start=1e9 * (life + 1)):
                values = {**seed_record(one), "unknown": "x"}
                stream.write(encode(one)[:0] + reader.orjson.dumps(values) + b"\n")
    return folder


@pytest.mark.parametrize("kind", ["file", "folder", "gzip", "zstd"])
def test_every_format_gives_the_same_summary_and_charts(
    log: Path, tmp_path: Path, kind: str
) -> None:
    """Lines and Parquet, compressed or not, in one file or many."""
    out = tmp_path / "converted"
    if kind == "file":
        convert(log, out=out / "all.parquet")
    elif kind == "folder":
        convert(log, out=f"{out}/")
    else:
        out.mkdir()
        for path in log.iterdir():
            data = path.read_bytes()
            if kind == "gzip":
                (out / f"{path.name}.gz").write_bytes(gzip.compress(data))
            else:
                (out / f"{path.name}.zst").write_bytes(zstandard.compress(data))
    expected = scan(log)
    digest = scan(out)
    assert_same(summarize(digest), summarize(expected))
    assert_same_charts(digest, expected)
    assert len(load(out)) == len(load(log))


def test_without_charts_all_else_is_the_same(log: Path) -> None:
    """And whoever draws one after all is told what to do; so of what it is merged with."""
    whole, without = scan(log), scan(log, charts=False)
    assert summarize(without) == summarize(whole)
    assert find_anomalies(without) == find_anomalies(whole)
    merged = Digest()
    merged.merge(without)
    for digest in (without, merged):
        with pytest.raises(SchedProfilerError, match="charts=True"):
            plot_overview(digest)


def test_progress_is_told_what_is_read_and_what_there_is(log: Path) -> None:
    """Also of files that are compressed, by their size on the disk."""
    path = log / "ranks.jsonl"
    (log / "ranks.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    total = sum(file.stat().st_size for file in log.iterdir())
    seen: list[tuple[int, int]] = []
    scan(log, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """Four times as long a log takes no more; the resident set is measured in a process."""
    lines = b"".join(map(encode, records(20_000, run_id="one")))
    peaks = []
    for times in (2, 8):
        log = tmp_path / f"{times}.jsonl"
        with log.open("wb") as stream:
            for number in range(times):
                stream.write(lines.replace(b'"run_id":"one"', b'"run_id":"r%d"' % number))
        code = (
            "import pathlib, re, sys\n"
            "from sched_profiler.analysis import scan, summarize\n"
            "print(summarize(scan(sys.argv[1])).num_batches)\n"
            "status = pathlib.Path('/proc/self/status').read_text()\n"
            "print(re.search(r'VmHWM:\\s*(\\d+) kB', status)[1])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(log)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"POLARS_MAX_THREADS": "2"},
        )
        num_batches, peak = done.stdout.split()
        assert int(num_batches) == times * 20_000
        peaks.append(int(peak) / 1024)
    assert max(peaks) < 400
    assert peaks[1] < peaks[0] + 60
