"""Comparing runs."""

from __future__ import annotations

import io
import json

import attrs
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_engine import Load, Setup, SimulatedEngine, Times
from synthetic import records, seed_record

from sched_profiler.analysis import compare, label_sides, plot_comparison
from sched_profiler.analysis.comparison import Comparison
from sched_profiler.analysis.run_metrics import METRICS


def frame(engine: SimulatedEngine, num_batches: int = 3000) -> pd.DataFrame:
    """Return the batches of a simulated engine."""
    df = pd.DataFrame([attrs.asdict(record) for record in engine.run(num_batches)])
    df.insert(0, "run", 0)
    return df


BUSY = Load(requests_per_s=25, prompt_spread=0.3)
"""A load with many requests in a run, so that two runs have about the same."""


@pytest.fixture(scope="module")
def usual() -> pd.DataFrame:
    """Return a run to compare with."""
    return frame(SimulatedEngine(seed=1, load=BUSY))


def verdicts(comparison: Comparison, side: str) -> dict[str, str]:
    """Return the verdict of each metric of a side."""
    return {d.metric: d.verdict for d in comparison.differences if d.side == side}


def test_a_slower_model_is_worse_and_a_faster_one_better(usual: pd.DataFrame) -> None:
    """And the intervals hold what was changed."""
    sides = {"A": usual}
    for name, factor in (("slower", 1.3), ("faster", 0.7)):
        constant = Times().constant * factor
        sides[name] = frame(SimulatedEngine(seed=2, load=BUSY, times=Times(constant=constant)))
    comparison = compare(sides)
    for side, verdict in (("slower", "worse"), ("faster", "better")):
        found = verdicts(comparison, side)
        assert found["model_run_ms_p50"] == verdict
        assert found["decode_ms_mean"] == verdict
        assert found["total_step_ms_p50"] == verdict
    change = next(
        d.change
        for d in comparison.differences
        if (d.metric, d.side) == ("model_run_ms_p50", "slower")
    )
    assert 0.1 < change.low < change.value < change.high < 0.4


def test_the_values_are_those_of_the_whole_log(usual: pd.DataFrame) -> None:
    """Computed a second time, by pandas."""
    side = compare({"A": usual, "B": usual}).sides[0]
    wall_ms = usual["model_run_duration_ms"] + usual["idle_duration_ms"]
    tokens_per_s = 1e3 * usual["total_scheduled_tokens"].sum() / wall_ms.sum()
    assert side.estimates["tokens_per_second"].value == pytest.approx(tokens_per_s)
    repeated = wall_ms.repeat(usual["num_decode_reqs"])
    assert side.estimates["decode_ms_mean"].value == pytest.approx(repeated.mean())
    assert side.estimates["decode_ms_p99"].value == pytest.approx(
        repeated.quantile(0.99, interpolation="nearest"), rel=0.01
    )
    assert side.estimates["idle_share"].value == pytest.approx(
        usual["idle_duration_ms"].sum() / wall_ms.sum()
    )
    assert "generated_per_second" not in side.estimates
    for estimate in side.estimates.values():
        assert estimate.low <= estimate.value <= estimate.high


def test_a_run_does_not_differ_from_itself(usual: pd.DataFrame) -> None:
    """Not in one metric."""
    comparison = compare({"A": usual, "B": usual})
    assert set(verdicts(comparison, "B").values()) == {"within noise"}
    assert all(d.change.value == 0 for d in comparison.differences)


def test_what_differs_between_halves_of_a_run_is_no_difference(usual: pd.DataFrame) -> None:
    """The noise floor holds back what intervals alone would let through."""
    drifting = usual.copy()
    drifting["model_run_duration_ms"] *= np.linspace(0.7, 1.3, len(usual))
    slower = usual.copy()
    slower["model_run_duration_ms"] *= 1.1
    comparison = compare({"A": drifting, "B": slower})
    found = {d.metric: d for d in comparison.differences}["model_run_ms_p50"]
    assert found.noise_floor > 0.1
    assert found.verdict == "within noise"
    assert compare({"A": usual, "B": slower}).differences[0].metric == "tokens_per_second"


def test_a_hundredfold_change_is_one_in_either_direction(usual: pd.DataFrame) -> None:
    """Also where a side differs from itself by more than twice; no decrease exceeds -100%."""
    slow = usual.copy()
    slow["schedule_duration_ms"] *= np.where(np.arange(len(usual)) < len(usual) // 2, 40, 240)
    faster, slower = (
        {d.metric: d for d in compare(sides).differences}["schedule_ms_p50"]
        for sides in ({"A": slow, "B": usual}, {"A": usual, "B": slow})
    )
    assert (faster.verdict, slower.verdict) == ("better", "worse")
    assert -1 < faster.change.low < faster.change.high < -faster.noise_floor < -0.5
    assert slower.change.low > slower.noise_floor > 1
    assert (1 - faster.noise_floor) * (1 + slower.noise_floor) == pytest.approx(1)


_OPPOSITE = {"better": "worse", "worse": "better", "higher": "lower", "lower": "higher"}


@settings(max_examples=15)
@given(
    seeds=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    lengths=st.tuples(st.integers(2, 300), st.integers(2, 300)),
    factor=st.floats(0.005, 200),
    drift=st.floats(0, 3),
)
def test_the_order_of_the_sides_changes_nothing_but_the_direction(
    seeds: tuple[int, int], lengths: tuple[int, int], factor: float, drift: float
) -> None:
    """What is better than the other leaves the other worse."""
    a, b = (_noisy(seed, length) for seed, length in zip(seeds, lengths, strict=True))
    for name in (name for name in b if name.endswith("_ms")):
        b[name] *= factor * np.exp(drift * np.linspace(0, 1, len(b)))
    there, back = compare({"A": a, "B": b}), compare({"B": b, "A": a})
    for one, other in zip(there.differences, back.differences, strict=True):
        assert one.metric == other.metric
        assert other.verdict == _OPPOSITE.get(one.verdict, one.verdict), one.metric
        if one.verdict in _OPPOSITE:
            assert abs(one.change.value) > one.noise_floor


def _noisy(seed: int, length: int) -> pd.DataFrame:
    """Return batches of which nothing is steady."""
    rng = np.random.default_rng(seed)
    times = {
        name: np.exp(rng.normal(size=length))
        for name in (
            "schedule_duration_ms",
            "model_run_duration_ms",
            "total_step_duration_ms",
            "idle_duration_ms",
        )
    }
    return pd.DataFrame(
        times
        | {
            "num_decode_reqs": rng.integers(0, 9, length),
            "total_scheduled_tokens": rng.integers(1, 99, length),
            "num_waiting_reqs": rng.integers(0, 3, length),
            "kv_cache_usage": rng.random(length),
        }
    )


def test_a_short_side_has_a_warning_and_no_verdict(usual: pd.DataFrame) -> None:
    """Whichever side it is; one of few blocks has a warning only."""
    slower = usual.assign(schedule_duration_ms=usual["schedule_duration_ms"] * 100)
    short = slower[:20]
    for sides in ({"A": usual, "short": short}, {"short": short, "A": usual}):
        comparison = compare(sides)
        told = [one for one in comparison.warnings if one.startswith("short is")]
        assert told == [
            "short is too short: 20 batches of at least 100; let the engine run for longer"
        ]
        assert f"\nwarning: {told[0]}\n" in str(comparison)
        assert set(comparison.to_dict()["warnings"]) >= set(told)
        (verdict,) = (d.verdict for d in comparison.differences if d.metric == "schedule_ms_p50")
        assert verdict == "too short"
    few = compare({"A": usual, "few": slower[:150]})
    assert any(one.startswith("few is short: 16 blocks, and ") for one in few.warnings)
    assert verdicts(few, "few")["schedule_ms_p50"] == "worse"


def test_enough_blocks_need_no_warning() -> None:
    """As batches have that do not depend on each other."""
    comparison = compare({"A": _noisy(1, 500), "B": _noisy(2, 500)})
    assert comparison.warnings == []
    assert "warning" not in str(comparison)


def test_other_work_has_a_warning() -> None:
    """By the share of prefill, and by tokens of a batch unless all tokens together are the same."""
    df = _noisy(1, 500).assign(total_scheduled_tokens=40, num_prefill_tokens=10)
    prefill = df.assign(num_prefill_tokens=20)
    (warning,) = compare({"A": df, "B": prefill}).warnings
    assert "A and B have different loads: 40 and 40 tokens a batch, 25% and 50%" in warning
    larger = df.assign(total_scheduled_tokens=100, num_prefill_tokens=25)
    (warning,) = compare({"A": df, "B": larger}).warnings
    assert "40 and 100 tokens a batch" in warning
    assert compare({"A": df, "B": larger[:200]}).warnings == []
    assert compare({"A": df, "B": df.drop(columns="num_prefill_tokens")}).warnings == []


def test_metrics_that_are_neither_good_nor_bad_are_higher_or_lower() -> None:
    """Such as how many tokens a batch holds; a queue that was empty before can grow."""
    few, many = (
        frame(SimulatedEngine(seed=3, load=Load(requests_per_s=rate), setup=Setup(max_num_seqs=16)))
        for rate in (5, 60)
    )
    found = verdicts(compare({"few": few, "many": many}), "many")
    assert found["scheduled_tokens_mean"] == "higher"
    assert found["kv_cache_usage_mean"] == "higher"
    assert found["tokens_per_second"] == "better"
    assert found["waiting_reqs_mean"] == "worse"


def test_several_runs_of_a_side_are_taken_together(usual: pd.DataFrame) -> None:
    """No block has batches of two of them."""
    other = frame(SimulatedEngine(seed=9, load=BUSY), 1500)
    other["run"] = 1
    comparison = compare({"A": usual, "B": pd.concat([usual, other], ignore_index=True)})
    side = comparison.sides[1]
    assert (side.num_runs, side.num_batches) == (2, 4500)
    assert side.num_blocks == 3000 // side.batches_per_block + 1500 // side.batches_per_block


def test_a_comparison_is_a_table_and_plain_data(usual: pd.DataFrame) -> None:
    """What is not finite is null."""
    still = usual.assign(schedule_duration_ms=0.0)
    comparison = compare({"A": still, "B": usual}, confidence=0.9)
    text = str(comparison)
    assert text.splitlines()[0].startswith("A  3,000 batches of 1 run, drawn in ")
    assert "90% interval" in text
    assert any(line.startswith("throughput, tokens/s ") for line in text.splitlines())
    data = json.loads(comparison.to_json())
    found = {d["metric"]: d for d in data["differences"]}["schedule_ms_p50"]
    assert found["change"]["value"] is None
    assert found["verdict"] == "unknown"
    assert {d["metric"] for d in data["differences"]} <= {metric.name for metric in METRICS}


@pytest.mark.parametrize("measured", [True, False])
def test_logs_of_the_original_feature_are_compared_as_far_as_they_go(measured: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Wall time is then from the timestamps."""
    df = pd.DataFrame([seed_record(r, measured=measured) for r in records(300)])
    found = verdicts(compare({"A": df, "B": df}), "B")
    assert found["tokens_per_second"] == "within noise"
    assert ("total_step_ms_p50" in found) is measured
    assert "idle_share" not in found


def test_one_side_is_not_enough(usual: pd.DataFrame) -> None:
    """Nor is none."""
    with pytest.raises(ValueError, match="two sides or more"):
        compare({"A": usual})


def test_a_picture_has_a_curve_for_each_side(usual: pd.DataFrame) -> None:
    """In each chart of times, and a row for each metric in that of changes."""
    sides = {"first": usual, "second": usual, "third": usual.assign(idle_duration_ms=np.nan)}
    comparison = compare(sides)
    figure = plot_comparison(sides, comparison)
    *times, changes = figure.axes
    for axes in times:
        # The numbers that the rows of the changes have.
        told = [line.get_label() for line in axes.lines]
        assert told == ["[1] first", "[2] second", "[3] third"]
    labels = [text.get_text() for text in changes.get_yticklabels()]
    assert "total step, P50, ms [2]" in labels
    bare = {name: df[["schedule_duration_ms", "batch_id"]] for name, df in sides.items()}
    assert len(plot_comparison(bare, compare(bare)).axes[0].lines) == 0


def test_a_label_is_drawn_as_it_is(usual: pd.DataFrame) -> None:
    """A model may be called what matplotlib takes for a formula."""
    sides = {"model=$\\frac{$": usual[:200], "_hidden": usual[:200]}
    figure = plot_comparison(sides, compare(sides))
    figure.savefig(io.BytesIO(), format="png")
    assert len(figure.legends[0].get_texts()) == 2


def test_sides_are_called_by_the_settings_in_which_they_differ(usual: pd.DataFrame) -> None:
    """As the manifests of their own runs tell."""
    manifest = SimulatedEngine().manifest()
    small = attrs.evolve(manifest, run_id="a", max_num_batched_tokens=256)
    large = attrs.evolve(manifest, run_id="b", max_num_batched_tokens=2048, max_num_seqs=64)
    other = attrs.evolve(manifest, run_id="c", max_num_batched_tokens=1)
    a, b, none = (usual.assign(run_id=name) for name in ("a", "b", "x"))
    assert label_sides({"one": (a, [small, other]), "two": (b, [large, other])}) == {
        "one": "max_num_batched_tokens=256, max_num_seqs=128",
        "two": "max_num_batched_tokens=2048, max_num_seqs=64",
    }
    without = {"one": (a, [small]), "two": (none, [large])}
    assert label_sides(without) == {"one": "one", "two": "two"}
    assert label_sides({"one": (a, [small]), "two": (a, [small])}) == {"one": "one", "two": "two"}
    labels = label_sides({"1": (a, [small]), "2": (b, [large]), "3": (b, [large])})
    assert labels["3"] == "3: max_num_batched_tokens=2048, max_num_seqs=64"
    assert len(set(labels.values())) == 3


def test_sides_that_differ_in_much_have_short_labels(usual: pd.DataFrame) -> None:
    """The settings of the scheduler come first."""
    manifest = attrs.evolve(SimulatedEngine().manifest(), run_id="a", model="small")
    other = attrs.evolve(
        manifest,
        run_id="b",
        model="/models/" + "deep/" * 50 + "large",
        engine_version="0",
        max_num_batched_tokens=1,
        max_num_seqs=2,
        block_size=7,
    )
    a, b = (usual.assign(run_id=name) for name in "ab")
    labels = label_sides({"one": (a, [manifest]), "two": (b, [other])})
    assert labels["two"] == "max_num_batched_tokens=1, max_num_seqs=2, block_size=7, …"
    assert labels["one"].endswith(", …")
    named = attrs.evolve(manifest, run_id="b", model=other.model)
    assert label_sides({"one": (a, [manifest]), "two": (b, [named])}) == {
        "one": "model=small",
        "two": "model=…/deep/deep/deep/deep/deep/large",
    }
