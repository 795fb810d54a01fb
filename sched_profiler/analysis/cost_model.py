"""How long the model takes for a batch, as a sum of what the batch holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sched_profiler.analysis.bootstrap import block_length, blocks, draw, interval
from sched_profiler.analysis.columns import numbers, prefill_tokens
from sched_profiler.analysis.markup import preformatted
from sched_profiler.analysis.nonnegative import solve
from sched_profiler.analysis.robust import spread
from sched_profiler.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = [
    "TERMS",
    "CrossValidation",
    "StepTimeModel",
    "Term",
    "draw_coefficients",
    "fit_step_time",
]

Status = Literal["ok", "may be zero", "not separable", "not in the data"]

TERMS = (
    "constant",
    "prefill_tokens",
    "prefill_chunk_squares",
    "prefill_context_tokens",
    "decode_tokens",
    "decode_context_tokens",
)
"""What a batch's time is made of: a constant; each token of prefill; the sum of the squares of the
prefill chunks, for attention within them; each token of context that prefills read; each token of
decode, which is one a request without draft tokens; each token of context that decodes read."""

FORMAT = "sched_profiler step-time model 1"

_WARM_UP = 10
_FEWEST = 100
_HUBER = 1.345
"""In units of the spread: farther residuals count less. The usual choice."""
_ROUNDS = 30
_CONVERGED = 1e-6
_FOLDS = 5
_CONFIDENCE = 0.95
_INFLATION = 30.0
"""So many times more uncertain by what other terms explain as well: beyond that, a coefficient that
is known no better than to its own size is theirs as much."""


@attrs.frozen(kw_only=True)
class Term:
    """One term of the sum."""

    name: str
    coefficient: float
    """In ms for the constant, else in ms for each token, or squared token."""
    low: float
    high: float
    """The interval of 95% from a block bootstrap, at the weights of the fit."""
    status: Status
    """`ok`; `may be zero` if the interval touches 0; `not separable` if other terms vary along with
    it so that only their sum is known; `not in the data` if it is 0 in every batch."""
    mixed_with: str | None
    """The term that varies most along with it, if it is not separable."""
    mean_ms: float
    """What it adds to a batch, on average."""
    smallest: float
    largest: float
    """The range in the data; beyond it the model only extrapolates."""


@attrs.frozen(kw_only=True)
class CrossValidation:
    """How far predictions are off for batches that were not fitted.

    Each fifth of a run, in one piece, is predicted from the other four.
    """

    median_error: float
    """Median of |predicted / measured - 1|."""
    p95_error: float
    bias: float
    """Predicted time of all batches together / their measured time, less 1."""


@attrs.frozen(kw_only=True)
class StepTimeModel:
    """Predicts model_run_duration_ms from what a batch holds."""

    terms: tuple[Term, ...]
    num_batches: int
    """Batches that it was fitted to."""
    cross_validation: CrossValidation
    settings: dict[str, Any]
    """What the run manifest tells of the engine, as far as all runs agree."""

    def predict(
        self,
        *,
        prefill_chunk_sizes: Sequence[int] = (),
        decode_tokens: int = 0,
        prefill_context_tokens: int = 0,
        decode_context_tokens: int = 0,
    ) -> float:
        """Return the time of one batch, in ms.

        Args:
            prefill_chunk_sizes: tokens of each prefill request.
            decode_tokens: tokens of all decode requests, one each without draft tokens.
            prefill_context_tokens: computed before this batch, of all its prefill requests.
            decode_context_tokens: likewise, of all its decode requests.
        """
        values = (
            1.0,
            float(sum(prefill_chunk_sizes)),
            float(sum(chunk * chunk for chunk in prefill_chunk_sizes)),
            float(prefill_context_tokens),
            float(decode_tokens),
            float(decode_context_tokens),
        )
        return sum(term.coefficient * value for term, value in zip(self.terms, values, strict=True))

    def predict_batches(self, df: pd.DataFrame) -> Floats:
        """Return the time of each batch of a loaded log, in ms."""
        return np.asarray(_design(df) @ np.array([term.coefficient for term in self.terms]))

    def extrapolates(self, df: pd.DataFrame) -> NDArray[np.bool_]:
        """Tell for each batch of a loaded log whether it is beyond what the model has seen."""
        low = np.array([term.smallest for term in self.terms])
        high = np.array([term.largest for term in self.terms])
        design = _design(df)
        return np.asarray(((design < low) | (design > high)).any(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data."""
        return {"format": FORMAT, "unit": "ms"} | attrs.asdict(self)

    def to_json(self) -> str:
        """Return all fields as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> StepTimeModel:
        """Return the model that `to_json` has written.

        Raises:
            LogError: if it is none.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT or data.pop("unit") != "ms":
                raise _no_model(f"its format is not {FORMAT}, in ms")
            terms = tuple(Term(**term) for term in data.pop("terms"))
            validation = CrossValidation(**data.pop("cross_validation"))
            model = cls(terms=terms, cross_validation=validation, **data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _no_model(str(error)) from None
        if tuple(term.name for term in model.terms) != TERMS:
            raise _no_model(f"its terms are not {', '.join(TERMS)}")
        return model

    def __str__(self) -> str:
        """Return a table of the terms, how good predictions are, and what is not known."""
        rows = [("term", "ms", "95% interval", "adds, ms", "range in the data", "")]
        rows += [
            (
                term.name,
                f"{term.coefficient:.3g}",
                f"{term.low:.3g} to {term.high:.3g}",
                f"{term.mean_ms:.3g}",
                f"{term.smallest:,.0f} to {term.largest:,.0f}",
                _remark(term),
            )
            for term in self.terms
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(
                cell.ljust(width) if number in (0, len(row) - 1) else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )
        quality = self.cross_validation
        return (
            f"model run of {self.num_batches:,} batches\n\n{table}\n\n"
            f"predicted without having seen them, batches are off by {quality.median_error:.1%} in "
            f"the median and {quality.p95_error:.1%} at P95; all together by {quality.bias:+.1%}"
        )

    def _repr_html_(self) -> str:
        return preformatted(str(self))


def _no_model(reason: str) -> LogError:
    return LogError(
        f"this is no step-time model: {reason}; write one with `sched-profiler fit --out`"
    )


def _remark(term: Term) -> str:
    if term.status == "ok":
        return ""
    if term.mixed_with is not None:
        return f"not separable from {term.mixed_with}"
    return term.status


def fit_step_time(df: pd.DataFrame, settings: dict[str, Any] | None = None) -> StepTimeModel:
    """Fit a model to the batches of a loaded log.

    Least squares of relative errors, with coefficients that are not negative; errors far out of
    line count less (Huber). The first 10 batches of each run are left out.

    Args:
        df: as `load` returns it.
        settings: of the engine, to be kept with the model.

    Raises:
        LogError: if fewer than 100 batches have a model_run_duration_ms.
    """
    design, measured = _fitted(df)
    coefficients, weights = _robust_fit(design, measured)
    return StepTimeModel(
        terms=_describe(design, measured, coefficients, weights),
        num_batches=len(measured),
        cross_validation=_cross_validate(design, measured),
        settings=settings or {},
    )


def draw_coefficients(df: pd.DataFrame, *, seed: int) -> Floats:
    """Return the coefficients of the terms as they might be, a row a draw of a block bootstrap.

    Raises:
        LogError: as `fit_step_time` does.
    """
    design, measured = _fitted(df)
    coefficients, weights = _robust_fit(design, measured)
    return _bootstrap(design, measured, coefficients, weights, seed=seed)[0]


def _fitted(df: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return the terms and the times of the batches that a model is fitted to."""
    measured = numbers(df, "model_run_duration_ms")
    keep = (measured > 0) & ~_is_warm_up(df)
    df, measured = df[keep], measured[keep]
    if len(df) < _FEWEST:
        raise LogError(
            f"{len(df)} batches have a model_run_duration_ms after the first {_WARM_UP} of each "
            f"run; a fit needs {_FEWEST}: record for longer, or name more logs of the same engine"
        )
    return _design(df), measured


def _is_warm_up(df: pd.DataFrame) -> NDArray[np.bool_]:
    if "run" not in df:
        return np.arange(len(df)) < _WARM_UP
    return np.asarray(df.groupby("run").cumcount() < _WARM_UP)


def _design(df: pd.DataFrame) -> Floats:
    """Return the values of all terms, a row a batch."""
    prefill = prefill_tokens(df)
    return np.column_stack(
        [
            np.ones(len(df)),
            prefill,
            _squares(df),
            np.nan_to_num(numbers(df, "prefill_context_tokens")),
            numbers(df, "total_scheduled_tokens") - prefill,
            np.nan_to_num(numbers(df, "decode_context_tokens")),
        ]
    )


def _squares(df: pd.DataFrame) -> Floats:
    """Return the sum of the squares of the prefill chunks of each batch."""
    chunks = pa.array(df["prefill_chunk_sizes"])
    squares = np.square(pc.list_flatten(chunks).to_numpy(zero_copy_only=False).astype(np.float64))
    rows = pc.list_parent_indices(chunks).to_numpy(zero_copy_only=False)
    summed = np.bincount(rows.astype(np.int64), squares, minlength=len(df))
    return summed.astype(np.float64)


def _robust_fit(design: Floats, measured: Floats) -> tuple[Floats, Floats]:
    """Return the coefficients, and the weight of each batch."""
    predicted = np.full(len(measured), float(np.median(measured)))
    weights = 1.0 / measured**2
    coefficients = np.zeros(design.shape[1])
    for _ in range(_ROUNDS):
        weighted = design * weights[:, None]
        latest = solve(design.T @ weighted, weighted.T @ measured)
        moved = np.abs(design @ latest - predicted).max() / predicted.max()
        coefficients, predicted = latest, np.maximum(design @ latest, 1e-6)
        if moved < _CONVERGED:
            break
        errors = measured / predicted - 1.0
        far = np.abs(errors) / max(_HUBER * spread(errors), 1e-9)
        weights = 1.0 / (predicted**2 * np.maximum(far, 1.0))
    return coefficients, weights


def _describe(
    design: Floats, measured: Floats, coefficients: Floats, weights: Floats
) -> tuple[Term, ...]:
    drawn, num_blocks = _bootstrap(design, measured, coefficients, weights)
    inflation, mixed = _collinearity(design, weights)
    terms = []
    for number, name in enumerate(TERMS):
        column, value = design[:, number], float(coefficients[number])
        low, high = interval(drawn[:, number], value, num_blocks, _CONFIDENCE)
        low = max(0.0, low)
        status: Status = "ok"
        if not column.any():
            status, low, high = "not in the data", 0.0, 0.0
        elif inflation[number] > _INFLATION and high - low > value:
            status = "not separable"
        elif low <= 0.0:
            status = "may be zero"
        terms.append(
            Term(
                name=name,
                coefficient=value,
                low=low,
                high=high,
                status=status,
                mixed_with=TERMS[mixed[number]] if status == "not separable" else None,
                mean_ms=float(column.mean()) * value,
                smallest=float(column.min()),
                largest=float(column.max()),
            )
        )
    return tuple(terms)


def _bootstrap(
    design: Floats, measured: Floats, coefficients: Floats, weights: Floats, seed: int = 0
) -> tuple[Floats, int]:
    """Return the coefficients of each draw of blocks, and how many blocks there are.

    A draw needs no more of a block than its products, so it costs the same for any log.
    """
    errors = measured / np.maximum(design @ coefficients, 1e-6) - 1.0
    each = block_length([np.clip(errors, *np.quantile(errors, [0.01, 0.99]))])
    block = blocks(len(measured), each)
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    rooted = design * np.sqrt(weights)[:, None]
    target = measured * np.sqrt(weights)
    products = np.add.reduceat(rooted[:, :, None] * rooted[:, None, :], starts)
    moments = np.add.reduceat(rooted * target[:, None], starts)
    counts = draw(len(starts), seed=seed)
    size = design.shape[1]
    grams = (counts @ products.reshape(len(starts), -1)).reshape(-1, size, size)
    drawn = np.array([solve(g, m) for g, m in zip(grams, counts @ moments, strict=True)])
    return drawn, len(starts)


def _collinearity(design: Floats, weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return how much more uncertain each term is by the others, and which one is most like it."""
    rooted = design * np.sqrt(weights)[:, None]
    length = np.sqrt((rooted**2).sum(axis=0))
    used = np.flatnonzero(length > 0)
    unit = rooted[:, used] / length[used]
    gram = unit.T @ unit
    inflation = np.zeros(design.shape[1])
    inflation[used] = np.diag(np.linalg.pinv(gram, rcond=1e-12))
    # Of columns that are sums of each other, the pseudo-inverse would make light.
    if np.linalg.matrix_rank(gram, tol=1e-9) < len(used):
        values, vectors = np.linalg.eigh(gram)
        involved = (np.abs(vectors[:, values < 1e-9]) > 1e-3).any(axis=1)  # noqa: PLR2004 - of 1
        inflation[used[involved]] = np.inf
    likeness = np.abs(gram) - np.eye(len(used))
    mixed = np.zeros(design.shape[1], dtype=np.int64)
    mixed[used] = used[np.argmax(likeness, axis=1)]
    return inflation, mixed


def _cross_validate(design: Floats, measured: Floats) -> CrossValidation:
    fold = np.minimum(np.arange(len(measured)) * _FOLDS // len(measured), _FOLDS - 1)
    predicted = np.empty(len(measured))
    for number in range(_FOLDS):
        unseen = fold == number
        coefficients, _ = _robust_fit(design[~unseen], measured[~unseen])
        predicted[unseen] = design[unseen] @ coefficients
    errors = np.abs(predicted / measured - 1.0)
    return CrossValidation(
        median_error=float(np.median(errors)),
        p95_error=float(np.quantile(errors, 0.95)),
        bias=float(predicted.sum() / measured.sum() - 1.0),
    )
