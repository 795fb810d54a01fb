# ruff: noqa: INP001 - a module of the hook beside it, no package
"""Turns what the benchmarks and the matrix measured into tables.

`docs/measured/` holds the files that `make bench`, `make faults` and `make matrix` wrote into
`build/`, as they are. A page says `<!-- generated: NAME -->`; see `generate.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parents[1] / "measured"


def _load(name: str) -> Any:
    return json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> str:
    """Return a row for each version of vLLM that the matrix ran."""
    results = _load("matrix")["results"]
    rows = [[r["version"], r["build"], r["outcome"], str(r["passed"])] for r in results]
    return _table(["vLLM", "build", "outcome", "tests passed"], rows)


def pythons() -> str:
    """Return a row for each Python without vLLM."""
    rows = [[r["version"], r["outcome"], f"{r['passed']:,}"] for r in _load("pythons")]
    return _table(["Python", "outcome", "tests passed"], rows)


def machine() -> str:
    """Return what the benchmarks ran on."""
    found = _load("hook_cost")
    return f"{found['cpu']}, Python {found['python']}, vLLM {found['vllm']} (CPU build)."


def hook_cost(batch: str, caches: str) -> str:
    """Return the cost of all contenders by the number of running requests."""
    cells: dict[int, dict[str, dict[str, Any]]] = {}
    for row in _load("hook_cost")["rows"]:
        if (row["batch"], row["caches"]) == (batch, caches):
            cells.setdefault(row["running"], {})[row["contender"]] = row
    contenders = (
        "sched_profiler",
        "sched_profiler without C",
        "iteration details",
        "per-request walk",
        "hand-rolled",
    )
    rows = []
    for running, by_name in cells.items():
        ours = by_name["sched_profiler"]
        rows.append(
            [
                str(running),
                f"{ours['vllm_p50_us']:.0f}",
                *(f"{by_name[name]['net_p50_us']:.1f}" for name in contenders),
                f"{ours['p99_us'] - by_name['nothing']['p50_us']:.0f}",
                f"{ours['share']:.2%}",
            ]
        )
    header = [
        "running requests",
        "vLLM's schedule + update, µs",
        *contenders,
        "our p99",
        "our share",
    ]
    return _table(header, rows)


def hook_ratios() -> str:
    """Return how many times as dear as ours the other ways are."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for row in _load("hook_cost")["rows"]:
        if row["caches"] == "live":
            by_name = cells.setdefault((row["batch"], row["running"]), {})
            by_name[row["contender"]] = row["net_p50_us"]
    others = (
        "sched_profiler without C",
        "iteration details",
        "per-request walk",
        "hand-rolled",
    )
    rows = [
        [batch, str(running), *(f"{net[name] / net['sched_profiler']:.1f}" for name in others)]
        for (batch, running), net in cells.items()
    ]
    return _table(["steps", "running requests", *others], rows)


def warm_cost() -> str:
    """Return the cost of a step that is replayed in a tight loop."""
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in _load("hook_cost")["rows"]:
        if row["caches"] == "warm" and row["contender"] != "nothing":
            cells.setdefault((row["contender"], row["num_prefill"]), []).append(row)
    sizes = [str(row["running"]) for row in next(iter(cells.values()))]
    rows = [
        [name, f"and {number} in prefill" if number else "decode only"]
        + [f"{row['net_p50_us']:.2f} ({row['net_p99_us']:.1f})" for row in of_kind]
        for (name, number), of_kind in cells.items()
    ]
    return _table(["µs a step, p50 (p99); running requests", "", *sizes], rows)


def writer_cost() -> str:
    """Return what a record costs the writer's thread, and how long it is."""
    rows = _load("writer_cost")
    return _table(
        ["running requests", *(str(row["running"]) for row in rows)],
        [
            ["µs of the writer's thread", *(f"{row['us_per_record']:.0f}" for row in rows)],
            ["bytes", *(f"{row['bytes_per_record']:.0f}" for row in rows)],
        ],
    )


def writer_share() -> str:
    """Return what hook and writer add to a step."""
    rows = [
        [
            str(row["running"]),
            f"{row['model_ms']:.0f} ms",
            f"{row['step_us']:.0f}",
            *("{:+.2%} ({:+.2%} to {:+.2%})".format(*row[name]) for name in ("hook", "whole")),
        ]
        for row in _load("writer_share")
    ]
    header = ["running requests", "model", "schedule + update, µs"]
    return _table([*header, "with the hook", "and the writer"], rows)


def top_cost() -> str:
    """Return how much of a core `top` takes."""
    rows = [
        [
            f"every {row['interval']}",
            str(row["batches_per_second"]),
            f"{row['share_of_a_core']:.0%}",
        ]
        for row in _load("top_cost")
    ]
    return _table(["drawn", "batches/s", "of a core"], rows)


def validate_rate() -> str:
    """Return how many records a second `validate` gets through."""
    rows = [
        [
            str(row["decodes"]),
            f"{row['records_per_second']:,.0f}",
            f"{row['megabytes_per_second']:.0f}",
            f"{row['reference_records_per_second']:,.0f}",
        ]
        for row in _load("validate_rate")
    ]
    return _table(["decodes in a record", "records/s", "MB/s", "records/s of jsonschema"], rows)


def analysis_rate() -> str:
    """Return the time and the memory that logs of several lengths take, in several ways."""
    rows = [
        [
            f"{row['way']}",
            f"{row['records']:,}",
            f"{row['megabytes']:,.0f}",
            f"{row['wall_s']:.1f}",
            f"{row['cpu_s']:.1f}",
            f"{row['peak_mb']:,.0f}",
        ]
        for row in sorted(_load("analysis_rate"), key=lambda row: row["records"])
    ]
    return _table(["", "records", "log, MB", "time, s", "time of all cores, s", "memory, MB"], rows)


def delivery_rate() -> str:
    """Return what became of batches that came faster than any engine makes them."""
    rows = [
        [
            f"{row['rate']:,}",
            f"{row['handed_over']:,}",
            f"{row['written']:,}",
            f"{row['dropped']:,}",
            str(row["unexplained"]),
            f"{row['memory_mib_after_a_tenth']:.0f}",
            "{:.0f} to {:.0f}".format(*row["memory_mib_in_the_second_half"]),
        ]
        for row in _load("delivery_rate")
    ]
    header = ["batches/s", "handed over", "written", "counted as dropped", "unexplained"]
    return _table(
        [*header, "MiB after a tenth of the time", "MiB in the second half"],
        rows,
    )


def soak() -> str:
    """Return what a process held after each twelfth of a long life."""
    found = _load("soak")
    blocks, resident = found["blocks"], found["resident_kib"]
    return (
        f"In {found['steps']:,} steps of vLLM's scheduler, in which requests came, finished, were"
        f" aborted, preempted and fell silent, Python's allocated blocks went from {blocks[0]:,} to"
        f" {blocks[-1]:,}, and the memory of the process from {resident[0] / 1024:.1f} MiB to"
        f" {resident[-1] / 1024:.1f} MiB."
    )


def end_to_end() -> str:
    """Return the ratios of throughput, with their intervals."""
    rows = []
    for layers in (2, 12):
        found = _load(f"end_to_end_{layers}_layers")
        for name in ("on_against_off", "off_against_off"):
            ratio, low, high = found[name]
            step = f"{found['step_ms']:.1f} ms"
            rows.append([step, name.replace("_", " "), f"{ratio:.4f}", f"{low:.4f} to {high:.4f}"])
    return _table(["a step takes", "throughput", "ratio", "95% interval"], rows)


def faults() -> str:
    """Return a row for each fault: throughput while it lasts, and what is noise."""
    found = _load("faults")
    rows = []
    for row in found["rows"]:
        ratios = (
            "{:.3f} ({:.3f} to {:.3f})".format(*row[name])
            for name in ("on_against_off", "off_against_off")
        )
        others = row["rounds_with_other_tokens"]
        rows.append(
            [row["fault"], *ratios, f"{row['other_threads']:.1%}", f"{others} of {row['rounds']}"]
        )
    header = ["fault", "profiled / unprofiled", "unprofiled / unprofiled", "other threads"]
    table = _table([*header, "rounds with other tokens"], rows)
    words = f"{found['cpu']}, load average {found['load_average']:.1f}"
    return f"{table}\n\nMeasured on: {words}. Other work on the machine widens the intervals."


def findings_recall() -> str:
    """Return how many of the planted faults were found."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in _load("findings")["rows"]:
        found = f"{row['found']} of {row['planted']}"
        cells.setdefault((row["fault"], row["kind"]), {})[row["size"]] = found
    rows = [
        [fault.replace("_", " "), f"`{kind}`", sizes["faint"], sizes["clear"]]
        for (fault, kind), sizes in cells.items()
    ]
    return _table(["planted", "finding", "faint", "clear"], rows)


def findings_precision() -> str:
    """Return how many findings of each kind were right."""
    rows = []
    for row in _load("findings")["alarms"]:
        precision = row["true"] / (row["true"] + row["false"])
        rows.append([f"`{row['kind']}`", str(row["true"]), str(row["false"]), f"{precision:.1%}"])
    return _table(["finding", "right", "false alarms", "precision"], rows)


def findings_steady() -> str:
    """Return what was found where there was nothing."""
    found = _load("findings")
    real = found["real_runs"]
    rows = [
        [
            str(run["num_layers"]),
            str(run["num_running"]),
            f"{run['step_ms']:.1f}",
            ", ".join(f"`{f['kind']}`" for f in run["findings"]) or "none",
        ]
        for run in real
    ]
    words = (
        f"In {found['num_steady_runs']} healthy simulated runs there were "
        f"{found['num_steady_alarms']} findings. vLLM under a steady load, "
        f"{real[0]['num_batches']:,} batches a run, on a machine with other work to do:"
    )
    return f"{words}\n\n{_table(['layers', 'running requests', 'step, ms', 'findings'], rows)}"


def compare_coverage() -> str:
    """Return how often intervals held the truth."""
    names = ("mean", "P50", "P99", "mean, one by one")
    rows = [
        [str(row["length"]), f"{row['rho']:g}", *(f"{row[name]:.0%}" for name in names)]
        for row in _load("compare")["coverage"]
    ]
    return _table(["batches", "autocorrelation", *names], rows)


def compare_same_engine() -> str:
    """Return how often equal engines were told apart."""
    words = [
        f"{row['verdicts']} of {row['metrics']} at {row['confidence']:.0%} "
        f"({row['verdicts'] / row['metrics']:.1%})"
        for row in _load("compare")["same_engine"]
    ]
    pairs = _load("compare")["same_engine"][0]["pairs"]
    return (
        f"And {pairs} pairs of simulated engines that differ in nothing but chance, load included: "
        f"metrics with a verdict other than `within noise` were {', and '.join(words)}."
    )


_TOLD = {
    "step_ms": "step",
    "tpot_ms": "per token",
    "ttft_ms": "first token",
    "ttft_p95_ms": "first token, P95",
    "request_ms": "whole answer",
    "output_tokens_per_s": "tokens/s",
    "model_busy": "busy",
}


def fit_error() -> str:
    """Return how far batches of a real engine are off that a model had not seen."""
    found = _load("tuning")["recommendation"]["served"]
    return (
        f"Of {found['num_fitted']:,} batches of a real engine, vLLM on a CPU with a tiny model,"
        f" half are predicted to within {found['median_error_of_fit']:.1%}: it is the log that"
        " [Replays](replays.md#how-good-it-is) is about."
    )


def tuning_check(kind: str) -> str:
    """Return a row for each run that was `predicted` or `replayed`: predicted / measured."""
    rows = []
    for one in _load("tuning")[kind]:
        limits = one["limits"]
        cells = [f"{one['measures'][name]['ratio']:.2f}" for name in _TOLD]
        busy = f"{one['measures']['model_busy']['measured']:.0%}"
        rows.append(
            [
                str(limits["budget"]),
                str(limits["seqs"]),
                f"{limits['rate']:g}",
                busy,
                f"{one['machine']:.2f}",
                *cells,
            ]
        )
    header = ["budget", "seqs", "requests/s", "model busy", "machine", *_TOLD.values()]
    return _table(header, rows)


def tuning_recommended() -> str:
    """Return what was recorded and what `tune` said of it."""
    found = _load("tuning")["recommendation"]
    now, far = (
        f"`max_num_batched_tokens={budget}`, `max_num_seqs={seqs}`"
        for budget, seqs in (found["start"], found["far"])
    )
    load = found["load"]
    said = next(line for line in found["stated"]["words"] if line.startswith("Recommended"))
    return (
        f"Two engines took turns, one with {now}, one with {far}, at {load['rate']:g} requests/s, "
        f"{load['count']} requests a turn. `tune` said of their logs: “{said}”"
    )


def tuning_changes(part: str) -> str:
    """Return what other limits change: as `tune` said, replayed, and measured."""
    rows = [
        [told, *(_percent(sides[kind]["change"]) for kind in ("stated", "replayed", "measured"))]
        for told, sides in _compared(part)
    ]
    return _table(["change", "`tune` said", "same requests replayed", "measured"], rows)


def tuning_absolutes(part: str) -> str:
    """Return the measures under both limits, of the same requests: replayed and measured."""
    rows = [
        [
            told,
            *(
                _figure(told, sides[kind][side])
                for side in ("now", "other")
                for kind in ("replayed", "measured")
            ),
        ]
        for told, sides in _compared(part)
    ]
    limits = (_load("tuning")["recommendation"][part][side] for side in ("now", "other"))
    header = [
        f"{budget}, {seqs}: {kind}" for budget, seqs in limits for kind in ("replayed", "measured")
    ]
    return _table(["", *header], rows)


def _compared(part: str) -> list[tuple[str, Any]]:
    measures = _load("tuning")["recommendation"][part]["measures"]
    return [(told, measures[name]) for name, told in _TOLD.items()]


def _percent(found: dict[str, float]) -> str:
    value, low, high = (f"{found[part]:+.0%}" for part in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _figure(told: str, found: dict[str, float]) -> str:
    value, low, high = (
        f"{found[part]:.0%}" if told == "busy" else f"{found[part]:.3g}"
        for part in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def capacity_check_runs() -> str:
    """Return a row for each share of the predicted rate; in each cell both turns."""
    rows = []
    for found in _load("capacity_check")["checks"]:
        for share in sorted({one["share"] for one in found["runs"]}):
            turns = [one for one in found["runs"] if one["share"] == share]
            rows.append(
                [
                    _runs_out_of(found),
                    f"{share:.2f}",
                    *(
                        ", ".join(f"{one[name]:{digits}}" for one in turns)
                        for name, digits in (("answered", ".2f"), ("mean_waiting", ".1f"))
                    ),
                    ", ".join("yes" if one["saturated"] else "no" for one in turns),
                    ", ".join(f"{one['machine']:.2f}" for one in turns),
                ]
            )
    header = ["runs out of", "offered / predicted", "answered / offered", "waiting", "saturated"]
    return _table([*header, "machine"], rows)


def capacity_check() -> str:
    """Return what `capacity` said, what was measured, and predicted / measured."""
    rows = []
    for found in _load("capacity_check")["checks"]:
        stated = found["stated"]
        rows.append(
            [
                _runs_out_of(found),
                f"{stated['sustained_requests_per_s']:.1f} "
                f"({stated['low']:.1f} to {stated['high']:.1f})",
                stated["limit"],
                f"{found['measured']['requests_per_s']:.1f}" if found["measured"] else "-",
                *(
                    _held_against(found[name])
                    for name in ("measured", "measured_as_profiled", "measured_against_replayed")
                ),
            ]
        )
    header = ["runs out of", "`capacity` said", "waiting for", "measured", "predicted / measured"]
    return _table([*header, "at an even pace", "with a model of the run's own batches"], rows)


def _runs_out_of(found: dict[str, Any]) -> str:
    return f"`{found['scenario']}`" if "_" in found["scenario"] else found["scenario"]


def _held_against(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    predicted = found["ratio"] * found["requests_per_s"]
    ends = (predicted / found["high"], predicted / found["low"])
    told = "{:.2f} ({:.2f} to {:.2f})".format(found["ratio"], *ends)
    between = found["interpolated_ratio"]
    return f"{told}; {'-' if between is None else f'{between:.2f}'}"


def stall_printed(name: str) -> str:
    """Return what a command of the tutorial about a stall printed."""
    return f"```text\n{_load('stall')['printed'][name]}\n```"


def stall_machine() -> str:
    """Return what that tutorial was run on."""
    found = _load("stall")
    return f"{found['machine']}, Python {found['python']}, vLLM {found['vllm']} (CPU build)."
