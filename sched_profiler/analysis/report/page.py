"""Writes the page of a report.

The page asks nobody for anything: Plotly's script is in it, compressed, and its Content-Security-
Policy lets two scripts run, by their hashes, and nothing be fetched. What comes from a log is text
to the template, which escapes it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import attrs
import jinja2
import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sched_profiler import __version__
from sched_profiler.analysis.anomalies import find_anomalies
from sched_profiler.analysis.digest import Digest
from sched_profiler.analysis.report.charts import Charts, charts, run_names
from sched_profiler.analysis.report.definitions import DEFINITIONS
from sched_profiler.analysis.sample import FEWEST_BATCHES
from sched_profiler.analysis.slow import slow_batches
from sched_profiler.analysis.stats import summarize
from sched_profiler.analysis.time_axis import TimeAxis
from sched_profiler.errors import printable
from sched_profiler.manifest import RunFacts, RunManifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from sched_profiler.analysis.finding import Finding
    from sched_profiler.analysis.runs import Run
    from sched_profiler.analysis.slow import SlowBatch

__all__ = ["write_report"]

_FOLDER = Path(__file__).parent
_SETTINGS = (*RunFacts.__annotations__, "python_version", "sched_profiler_version")
_SHOWN_VALUES = 8
_SHOWN_RUNS = 200
"""Rows of the table of runs."""


def write_report(
    stream: IO[str],
    digest: Digest,
    df: pd.DataFrame | None = None,
    manifests: Iterable[RunManifest] = (),
    *,
    title: str = "",
) -> None:
    """Write a page of HTML about a log, which needs nothing but a browser.

    It has the numbers of `summarize`, the findings, charts, the slow batches, the runs beside each
    other and their configuration. Its size is about 2 MB, and has a limit: a long log is drawn as
    bands over intervals of time, with the largest value of each.

    Args:
        stream: where to write, as text.
        digest: of the log, as `scan` returns it.
        df: the same log, as `load` returns it. Without it, as for one that does not fit into
            memory, the page has no slow batches, and says so.
        manifests: of its runs, as `load_manifests` returns them, also of other runs.
        title: what to call the log; by default the model of its runs.
    """
    runs = digest.ordered_runs
    known = _of_runs(runs, manifests)
    time = TimeAxis(digest)
    drawn = charts(digest, time)
    # The digest of a frame has no sample.
    looked_at = digest if digest.num_sampled else df
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    plotly = get_plotlyjs()
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=title or _title(known),
            summary=summarize(digest),
            runs=_rows(runs, known, run_names(digest)),
            num_hidden_runs=max(0, len(runs) - _SHOWN_RUNS),
            settings=_settings([manifest for manifest in known if manifest is not None]),
            engines=_engines(known),
            first=min((run.start for run in runs), default=np.inf),
            time=time,
            findings=None if looked_at is None else _findings(looked_at, known, time),
            num_looked_at=digest.num_sampled or digest.num_batches,
            num_too_short=digest.num_runs_too_short,
            fewest_batches=FEWEST_BATCHES,
            slow=None if df is None else _slow(df, time),
            charts=drawn.charts,
            data=_data(drawn),
            definitions=DEFINITIONS,
            version=__version__,
            written=datetime.now(UTC),
            style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
            script=Markup(script),  # noqa: S704 - ours
            plotly=base64.b64encode(gzip.compress(plotly.encode(), mtime=0)).decode(),
            hashes=[_hash(script), _hash(plotly)],
        )
    )
    stream.write(page)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "number": _number,
        "percent": _percent,
        "ms": _ms,
        "duration": _duration,
        "moment": _moment,
    }
    return environment


def _finalized(value: Any) -> Any:
    # What turns text around or hides it is nothing to show.
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data(drawn: Charts) -> dict[str, Any]:
    return {
        "shared": drawn.shared,
        "charts": {chart.name: chart.spec for chart in drawn.charts},
    }


def _of_runs(runs: Sequence[Run], manifests: Iterable[RunManifest]) -> list[RunManifest | None]:
    """Return the manifest of each run, None where there is none."""
    found = {(manifest.run_id, manifest.dp_rank): manifest for manifest in manifests}
    return [found.get((run.run_id or "", run.dp_rank)) for run in runs]


def _title(manifests: Sequence[RunManifest | None]) -> str:
    models = {manifest.model for manifest in manifests if manifest is not None}
    (model,) = models if len(models) == 1 else (None,)
    return model or "Scheduler profile"


def _engines(manifests: Sequence[RunManifest | None]) -> list[str]:
    """Return the engines with their versions, each once."""
    return sorted(
        {
            f"{manifest.engine} {manifest.engine_version or ''}".strip()
            for manifest in manifests
            if manifest is not None and manifest.engine
        }
    )


def _settings(manifests: Sequence[RunManifest]) -> list[tuple[str, str, str]]:
    """Return name, meaning and value of the settings that are known."""
    rows = []
    for name in _SETTINGS:
        values = {getattr(manifest, name) for manifest in manifests} - {None}
        if values:
            shown = [_setting(value) for value in sorted(values)[:_SHOWN_VALUES]]
            more = " / …" if len(values) > _SHOWN_VALUES else ""
            doc = getattr(attrs.fields(RunManifest), name).metadata["doc"]
            rows.append((name, doc, " / ".join(shown) + more))
    return rows


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rows(
    runs: Sequence[Run], manifests: Sequence[RunManifest | None], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what the table says of each run."""
    rows = []
    for run, manifest, name in list(zip(runs, manifests, names, strict=True))[:_SHOWN_RUNS]:
        schedule, model_run = run.durations.values()
        wall = run.wall_time_s
        rows.append(
            {
                "name": name,
                "run": run,
                "manifest": manifest,
                "wall_time_s": wall,
                "tokens_per_second": run.num_tokens / wall if wall else None,
                "schedule": schedule.quantiles([0.5, 0.99]) if schedule.count else None,
                "model_run": model_run.quantiles([0.5, 0.99]) if model_run.count else None,
            }
        )
    return rows


def _findings(
    log: Digest | pd.DataFrame, manifests: Sequence[RunManifest | None], time: TimeAxis
) -> list[tuple[Finding, list[tuple[int, float]]]]:
    """Return the findings, each with its batches and where these are on the axis of time."""
    found = find_anomalies(log, [manifest for manifest in manifests if manifest is not None])
    if isinstance(log, Digest):
        runs = [{name: run.rows[name].to_numpy() for name in _PLACE} for run in log.excerpts()]
    else:
        runs = [{name: run[name].to_numpy() for name in _PLACE} for _, run in log.groupby("run")]
    placed = []
    for finding in found:
        ids, timestamps = (runs[finding.run][name] for name in _PLACE)
        shown = np.isin(ids, finding.batch_ids)
        batches = zip(ids[shown].astype(int).tolist(), time.of(timestamps[shown]), strict=True)
        placed.append((finding, [(batch_id, float(at)) for batch_id, at in batches]))
    return placed


_PLACE = ("batch_id", "timestamp")


def _slow(df: pd.DataFrame, time: TimeAxis) -> list[tuple[SlowBatch, float]]:
    """Return the slowest batches, each with where it is on the axis of time."""
    found = slow_batches(df)
    at = time.of(np.array([batch.timestamp for batch in found]))
    return list(zip(found, at.tolist(), strict=True))


_UNKNOWN = "not recorded"


def _number(value: float | None, digits: int = 0) -> str:
    return _UNKNOWN if value is None or not np.isfinite(value) else f"{value:,.{digits}f}"


def _percent(share: float | None, digits: int = 1) -> str:
    return _UNKNOWN if share is None or not np.isfinite(share) else f"{share:.{digits}%}"


_DIGITS_FROM = ((100.0, 0), (10.0, 1), (1.0, 2))


def _ms(value: float | None) -> str:
    """Return a time in ms with about three digits."""
    if value is None or not np.isfinite(value):
        return _UNKNOWN
    digits = next((digits for least, digits in _DIGITS_FROM if abs(value) >= least), 3)
    return f"{value:,.{digits}f}"


_MINUTE_S, _HOUR_S = 60.0, 3600.0


def _duration(seconds: float | None) -> str:
    if seconds is None or not np.isfinite(seconds):
        return _UNKNOWN
    if seconds < _MINUTE_S:
        return f"{seconds:.3g} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.1f} min"
    return f"{seconds / _HOUR_S:,.1f} h"


def _moment(timestamp: float | None) -> str:
    """Return a Unix time as a person reads it."""
    try:
        moment = datetime.fromtimestamp(timestamp if timestamp is not None else np.nan, UTC)
    except (OverflowError, ValueError, OSError):
        return _UNKNOWN
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
