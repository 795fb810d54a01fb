"""The step-time model."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import numpy as np
import pandas as pd
import pytest
from simulated_engine import Load, Setup, SimulatedEngine, Times
from synthetic import batch, seed_record, write_log

from sched_profiler.analysis import StepTimeModel, fit_step_time, load, plot_residuals
from sched_profiler.errors import LogError

VARIED = SimulatedEngine(
    seed=1, load=Load(requests_per_s=15, prompt_tokens=300), setup=Setup(token_budget=512)
)


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    """Return a run whose batches differ in everything."""
    return pd.DataFrame([attrs.asdict(record) for record in VARIED.run(3000)])


@pytest.fixture(scope="module")
def model(log: pd.DataFrame) -> StepTimeModel:
    """Return the model of that run."""
    return fit_step_time(log, {"max_num_seqs": 128})


TRUTH = {
    "constant": Times().constant,
    "prefill_tokens": Times().per_prefill_token,
    "prefill_chunk_squares": 0.0,
    "prefill_context_tokens": Times().per_prefill_context_token,
    "decode_tokens": Times().per_decode_request,
    "decode_context_tokens": Times().per_decode_context_token,
}
"""What the simulated engine's time is made of."""


def test_the_fit_finds_what_the_simulation_is_made_of(model: StepTimeModel) -> None:
    """Within the intervals, but for one that may miss by chance."""
    terms = {term.name: term for term in model.terms}
    missed = [name for name, term in terms.items() if not term.low <= TRUTH[name] <= term.high]
    assert len(missed) <= 1
    assert terms["constant"].coefficient == pytest.approx(6, rel=0.03)
    assert terms["prefill_tokens"].coefficient == pytest.approx(0.02, rel=0.05)
    assert terms["prefill_chunk_squares"].status == "may be zero"
    assert terms["prefill_tokens"].status == "ok"
    assert terms["prefill_tokens"].largest <= 512


def test_batches_that_were_not_fitted_are_predicted(model: StepTimeModel) -> None:
    """As well as the model itself says, for another run of the same engine."""
    other = attrs.evolve(VARIED, seed=77)
    df = pd.DataFrame([attrs.asdict(record) for record in other.run(1500)])
    errors = np.abs(model.predict_batches(df) / df["model_run_duration_ms"] - 1)
    assert errors.median() == pytest.approx(model.cross_validation.median_error, rel=0.2)
    assert model.cross_validation.median_error < 0.05
    assert abs(model.cross_validation.bias) < 0.02


def test_a_prediction_needs_no_log(model: StepTimeModel, log: pd.DataFrame) -> None:
    """It is the same as for the record of that batch."""
    row = log[log["num_prefill_reqs"] > 1].iloc[0]
    predicted = model.predict(
        prefill_chunk_sizes=row["prefill_chunk_sizes"],
        decode_tokens=row["num_decode_tokens"],
        prefill_context_tokens=row["prefill_context_tokens"],
        decode_context_tokens=row["decode_context_tokens"],
    )
    assert predicted == pytest.approx(model.predict_batches(log.loc[[row.name]])[0])
    assert model.predict() == model.terms[0].coefficient


def test_wild_batches_do_not_move_the_fit(log: pd.DataFrame, model: StepTimeModel) -> None:
    """One in fifty takes ten times as long."""
    wild = log.copy()
    wild.loc[::50, "model_run_duration_ms"] *= 10
    for before, after in zip(model.terms[:2], fit_step_time(wild).terms[:2], strict=True):
        assert after.coefficient == pytest.approx(before.coefficient, rel=0.03)


def test_what_the_data_cannot_tell_is_said(tmp_path: Path) -> None:
    """A context that grows with the requests, and prefills that never were."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 60, 400)
    df = load(
        write_log(
            tmp_path / "run.jsonl",
            [
                batch(
                    number,
                    decode=[1] * int(count),
                    model_run_ms=5 + 0.1 * count * rng.lognormal(0, 0.02),
                    decode_context_tokens=100 * int(count),
                )
                for number, count in enumerate(counts)
            ],
        )
    )
    terms = {term.name: term for term in fit_step_time(df).terms}
    assert terms["decode_tokens"].status == "not separable"
    assert terms["decode_tokens"].mixed_with == "decode_context_tokens"
    assert terms["prefill_tokens"].status == "not in the data"
    assert "not separable from decode_context_tokens" in str(fit_step_time(df))


def test_a_model_tells_what_it_has_not_seen(model: StepTimeModel, log: pd.DataFrame) -> None:
    """Beyond the range of its data it extrapolates."""
    assert not model.extrapolates(log[10:]).any()
    beyond = log.iloc[10:12].assign(decode_context_tokens=10**9)
    assert model.extrapolates(beyond).all()


def test_a_model_is_kept_as_json(model: StepTimeModel) -> None:
    """And comes back as it was."""
    assert StepTimeModel.from_json(model.to_json()) == model
    data = json.loads(model.to_json())
    assert data["settings"] == {"max_num_seqs": 128}
    assert data["unit"] == "ms"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "other", "unit": "ms"}', '{"format": null}'],
)
def test_what_is_no_model_is_an_error(text: str) -> None:
    """The message says so."""
    with pytest.raises(LogError, match=r"no step-time model: .*; write one with .*fit --out`$"):
        StepTimeModel.from_json(text)


def test_a_model_of_other_terms_is_an_error(model: StepTimeModel) -> None:
    """Its sum would be another one."""
    data = model.to_dict()
    data["terms"] = data["terms"][:3]
    with pytest.raises(LogError, match="its terms are not constant, "):
        StepTimeModel.from_json(json.dumps(data))


def test_a_log_of_the_original_feature_can_be_fitted(log: pd.DataFrame) -> None:
    """Without contexts these are not in the data; without model times there is no fit."""
    records = list(VARIED.run(300))
    df = pd.DataFrame([seed_record(record) for record in records])
    terms = {term.name: term.status for term in fit_step_time(df).terms}
    assert terms["decode_context_tokens"] == "not in the data"
    assert terms["constant"] == "ok"
    bare = pd.DataFrame([seed_record(record, measured=False) for record in records])
    with pytest.raises(LogError, match="0 batches have a model_run_duration_ms"):
        fit_step_time(bare)
    with pytest.raises(LogError, match="99 batches"):
        fit_step_time(log[:109])


def test_a_picture_shows_how_far_it_is_off(model: StepTimeModel, log: pd.DataFrame) -> None:
    """Four charts, also of a log of any length."""
    figure = plot_residuals(pd.concat([log] * 4, ignore_index=True), model)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "Measured against predicted",
        "Error over the run",
        "Error by size",
        "Distribution of the error",
    ]
    assert len(figure.axes[0].lines[0].get_xdata()) <= 6000
