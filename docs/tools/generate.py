# ruff: noqa: INP001 - a hook of mkdocs and a script, no package
"""Generates what the documentation says of the code: a hook of mkdocs.

On a page, the line `<!-- generated: NAME -->` becomes what `GENERATORS[NAME]` returns.
`python docs/tools/generate.py NAME` prints the same, for the one copy that is kept by hand: the
table in README.md, which a test holds to the class.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

sys.path.insert(0, str(Path(__file__).parent))
import architecture
import measured
import notebook

from sched_profiler import BatchRecord, RunManifest, analysis
from sched_profiler.cli import COMMANDS
from sched_profiler.request_record import RequestRecord
from sched_profiler.sinks.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


def field_table(*, optional: bool) -> str:
    """Return the required or the optional fields of a record as a Markdown table."""
    header = ["field", "type", "unit", "meaning", "absent" if optional else "null"]
    rows = [header, ["---"] * len(header)]
    for field in attrs.fields(BatchRecord):
        if (field.default is not attrs.NOTHING) == optional:
            meaning, unknown = _split_doc(field.metadata["doc"])
            rows.append([f"`{field.name}`", _type(field), _unit(field.name), meaning, unknown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def manifest_table() -> str:
    """Return the fields of a run manifest as a Markdown table."""
    return _plain_table(RunManifest)


def _plain_table(cls: type[attrs.AttrsInstance]) -> str:
    rows = [["field", "type", "meaning"], ["---"] * 3]
    for field in attrs.fields(cls):
        name = inspect.formatannotation(field.type).replace("str", "string")
        kind = name.replace(" | None", " or null").replace("dict[string, int]", "object of int")
        rows.append([f"`{field.name}`", kind, field.metadata["doc"].rstrip(".")])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def request_table() -> str:
    """Return the fields of a line of a request trace as a Markdown table."""
    return _plain_table(RequestRecord)


def schema_table(name: str) -> str:
    """Return what a JSON Schema demands of each field as a Markdown table."""
    schema = json.loads((ROOT / f"schema/{name}-v1.schema.json").read_text(encoding="utf-8"))
    rows = [["field", "type", "limits", "required"], ["---"] * 4]
    for field, rules in schema["properties"].items():
        known = {"description", "type", "items", "additionalProperties", *_LIMITS}
        if unknown := rules.keys() - known:
            raise ValueError(f"{field} in {name}: {unknown} is not rendered")
        required = "yes" if field in schema["required"] else "no"
        rows.append([f"`{field}`", _schema_type(rules), _schema_limits(rules), required])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


_LIMITS = {"const": "is", "enum": "one of", "minimum": "≥", "maximum": "≤"}


def _schema_type(rules: dict[str, Any]) -> str:
    names = rules.get("type", "")
    found = " or ".join([names] if isinstance(names, str) else names)
    for key in ("items", "additionalProperties"):
        if key in rules:
            found = re.sub(r"^array|^object", rf"\g<0> of {_schema_type(rules[key])}", found)
    return found


def _schema_limits(rules: dict[str, Any]) -> str:
    found = [
        f"{word} {', '.join(map(json.dumps, [rules[key]] if key != 'enum' else rules[key]))}"
        for key, word in _LIMITS.items()
        if key in rules
    ]
    found += [
        f"each {inner}"
        for key in ("items", "additionalProperties")
        if key in rules and (inner := _schema_limits(rules[key]))
    ]
    return "; ".join(found)


def first_profile_summary() -> str:
    """Return the summary of the run that the first tutorial shows."""
    summary = analysis.summarize(analysis.load(ROOT / "examples/first_look.jsonl.gz"))
    return f"```text\n{summary}\n```"


def first_profile_prefill() -> str:
    """Return what the last snippet of that tutorial prints of that run."""
    df = analysis.load(ROOT / "examples/first_look.jsonl.gz")
    has_prefill = df["num_prefill_reqs"] > 0
    return f"```text\n{df.groupby(has_prefill)['model_run_duration_ms'].median()}\n```"


def asynchronous_times() -> str:
    """Return what the times of an asynchronous run add up to."""
    df = analysis.load(ROOT / "docs/measured/asynchronous.jsonl.gz")
    began = df["timestamp"]
    ended = began + df["total_step_duration_ms"] / 1e3
    rows = {
        "wall time": (ended.max() - began.min()) * 1e3,
        "Σ total step": df["total_step_duration_ms"].sum(),
        "Σ (model run + idle)": (df["model_run_duration_ms"] + df["idle_duration_ms"]).sum(),
    }
    table = "\n".join(f"| {name} | {ms:.0f} |" for name, ms in rows.items())
    return f"| of {len(df)} batches | ms |\n| --- | --- |\n{table}"


def metric_table() -> str:
    """Return the metrics as a Markdown table."""
    rows = ["| Prometheus | OpenTelemetry | kind | meaning |", "| --- | --- | --- | --- |"]
    for metric in METRICS:
        unit = f"_{metric.unit}" if metric.unit else ""
        names = f"`sched_profiler_{metric.name}{unit}` | `sched_profiler.{metric.name}`"
        rows.append(f"| {names} | {metric.kind} | {metric.description.rstrip('.')} |")
    return "\n".join(rows)


def _split_doc(doc: str) -> tuple[str, str]:
    """Split the description of a field into its meaning and when it is null or absent."""
    meaning, unknown = re.split(r" (?=Never null|Null |Absent )", doc, maxsplit=1)
    unknown = re.sub(r"^(Null|Absent) |(?<=^Never) null", "", unknown).rstrip(".")
    # The unit has a column of its own.
    meaning = re.sub(r", in (ms|tokens)(?=[:.])", "", meaning)
    return meaning.rstrip("."), unknown[0].lower() + unknown[1:]


def _type(field: attrs.Attribute[Any]) -> str:
    name = inspect.formatannotation(field.type)
    for pattern, replacement in (
        (r"list\[(\w+)\]", r"list of \1"),
        (r"\bstr\b", "string"),
        # An optional field is left out rather than null.
        (r" \| None$", " or null" if field.default is attrs.NOTHING else ""),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def _unit(name: str) -> str:
    for pattern, unit in (
        (r"_duration_ms$", "ms"),
        (r"^timestamp$", "s"),
        (r"_reqs$", "requests"),
        (r"_tokens$|_chunk_sizes?$|^token_budget$", "tokens"),
        (r"_usage$", "share"),
        (r"_batches$", "batches"),
        (r"_records$", "records"),
    ):
        if re.search(pattern, name):
            return unit
    return ""


@functools.cache
def command_help(*arguments: str) -> str:
    """Return what the command line prints when it is asked for help."""
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "sched_profiler", *arguments, "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "88", "NO_COLOR": "1", "PYTHON_COLORS": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    text = done.stdout.replace("__main__.py", "sched-profiler")
    return f"```text\n{text.rstrip()}\n```"


def source_of(path: str, name: str) -> str:
    """Return a class or function of a script as it stands there."""
    text = (ROOT / path).read_text(encoding="utf-8")
    (node,) = (
        n
        for n in ast.parse(text).body
        if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name
    )
    return f"```python\n{ast.get_source_segment(text, node)}\n```"


GENERATORS: dict[str, Callable[[], str]] = {
    "vLLM versions": measured.versions,
    "bench machine": measured.machine,
    "hook cost decode-only": functools.partial(measured.hook_cost, "decode-only", "live"),
    "hook cost mixed": functools.partial(measured.hook_cost, "mixed", "live"),
    "hook cost swept": functools.partial(measured.hook_cost, "decode-only", "swept"),
    "hook cost ratios": measured.hook_ratios,
    "hook cost warm": measured.warm_cost,
    "writer cost": measured.writer_cost,
    "writer share": measured.writer_share,
    "pythons": measured.pythons,
    "analysis rate": measured.analysis_rate,
    "fit error": measured.fit_error,
    "delivery rate": measured.delivery_rate,
    "top cost": measured.top_cost,
    "validate rate": measured.validate_rate,
    "soak": measured.soak,
    "end to end": measured.end_to_end,
    "faults": measured.faults,
    "findings recall": measured.findings_recall,
    "findings precision": measured.findings_precision,
    "findings steady": measured.findings_steady,
    "compare coverage": measured.compare_coverage,
    "compare same engine": measured.compare_same_engine,
    "tuning check": functools.partial(measured.tuning_check, "predicted"),
    "tuning check replay alone": functools.partial(measured.tuning_check, "replayed"),
    "tuning recommended": measured.tuning_recommended,
    "tuning turns, changes": functools.partial(measured.tuning_changes, "turns"),
    "tuning served, changes": functools.partial(measured.tuning_changes, "served"),
    "tuning served": functools.partial(measured.tuning_absolutes, "served"),
    "capacity check": measured.capacity_check,
    "capacity check runs": measured.capacity_check_runs,
    "stall machine": measured.stall_machine,
    "stall run": functools.partial(measured.stall_printed, "stalled"),
    "stall analyze": functools.partial(measured.stall_printed, "analyze .demo/stalled"),
    "stall slow": functools.partial(
        measured.stall_printed, "slow .demo/stalled --schedule-over 5ms --top 3"
    ),
    "stall snippet": functools.partial(measured.stall_printed, "snippet"),
    "stall code": functools.partial(source_of, "examples/planted_stall.py", "TierScheduler"),
    "stall fix": functools.partial(source_of, "examples/planted_stall.py", "FixedTierScheduler"),
    "stall fixed run": functools.partial(measured.stall_printed, "fixed"),
    "stall fixed analyze": functools.partial(measured.stall_printed, "analyze .demo/fixed"),
    "stall compare": functools.partial(measured.stall_printed, "compare .demo/stalled .demo/fixed"),
    "required fields": functools.partial(field_table, optional=False),
    "optional fields": functools.partial(field_table, optional=True),
    "help": command_help,
    "manifest fields": manifest_table,
    "request trace fields": request_table,
    "schema batch-record": functools.partial(schema_table, "batch-record"),
    "schema request-trace": functools.partial(schema_table, "request-trace"),
    "schema run-manifest": functools.partial(schema_table, "run-manifest"),
    "first profile summary": first_profile_summary,
    "first profile prefill": first_profile_prefill,
    "asynchronous times": asynchronous_times,
    "metrics": metric_table,
    "notebook": notebook.page,
    "architecture": architecture.table,
}
GENERATORS |= {
    f"help {command.name}": functools.partial(command_help, command.name) for command in COMMANDS
}


_HEADING = re.compile(r"^#+ [^\n]+$|^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def headings(markdown: str) -> list[str]:
    """Return the headings of a page, each with its marks."""
    return [match[0] for match in _HEADING.finditer(markdown) if match[0].startswith("#")]


def anchor(heading: str) -> str:
    """Return the anchor of an English heading, as both GitHub and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("#")).strip().lower().replace(" ", "-")


def with_anchors(translation: str, original: str) -> str:
    """Give the headings of a translation the anchors of those that they translate.

    So a link to a part of a page leads there in every language.
    """
    anchors = map(anchor, headings(original))
    return _HEADING.sub(
        lambda match: f"{match[0]} {{#{next(anchors)}}}" if match[0][0] == "#" else match[0],
        translation,
    )


def on_page_markdown(markdown: str, page: Any = None, **_: object) -> str:
    """Fill in what is generated, and anchors of translations (mkdocs calls this for every page)."""
    if page is not None and page.file.src_uri.endswith(".zh.md"):
        original = Path(page.file.abs_src_path.removesuffix(".zh.md") + ".md")
        markdown = with_anchors(markdown, original.read_text(encoding="utf-8"))
    return re.sub(
        r"^<!-- generated: (.+) -->$",
        lambda match: GENERATORS[match[1]](),
        markdown,
        flags=re.MULTILINE,
    )


def on_post_page(output: str, **_: object) -> str:
    """Leave out which pages are translations of which (mkdocs calls this for every page).

    For each that it would name, the theme's script asks for a site map beside that page.
    """
    return re.sub(r'\s*<link rel="alternate"[^>]*>', "", output)


def on_post_template(output: str, template_name: str, **_: object) -> str:
    """Leave out the site map (mkdocs calls this for what is no page).

    It is a list of addresses, and the address of the site is not known.
    """
    return "" if template_name == "sitemap.xml" else output


def on_files(files: Any, config: Any) -> Any:
    """Put the schemas into the site (mkdocs calls this once)."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - mkdocs is there when it calls

    for path in sorted((ROOT / "schema").glob("*.json")):
        files.append(File.generated(config, f"schema/{path.name}", abs_src_path=str(path)))
    return files


if __name__ == "__main__":
    print(GENERATORS[" ".join(sys.argv[1:])]())  # noqa: T201 - a command talks
