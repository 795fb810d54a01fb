"""What the documentation says is so: its snippets run, its tables and lists match the code."""

from __future__ import annotations

import functools
import gzip
import json
import os
import re
import shlex
import shutil
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs
import matplotlib as mpl
import pytest
import yaml
from engine_under_test import serve
from matplotlib import pyplot as plt
from prometheus_client import CollectorRegistry, generate_latest
from scripts import load_script
from synthetic import records, write_log

import sched_profiler
from sched_profiler import BatchProfiler, RemoteSink, analysis, cli, settings
from sched_profiler.compression import compress
from sched_profiler.engines.vllm_binding import version_warning
from sched_profiler.sinks.prometheus import PrometheusSink

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sched_profiler"
TRANSLATIONS = sorted((ROOT / "docs").rglob("*.zh.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted({*(ROOT / "docs").rglob("*.md")} - {*TRANSLATIONS}),
]
TRANSLATED = [
    ROOT / "docs/index.md",
    *(page for page in PAGES if page.parent.name in ("tutorial", "how-to")),
]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n *\Z")


@attrs.frozen
class Snippet:
    """A fenced block of code on a page."""

    language: str
    code: str
    line: int
    """Number of its first line of code on the page."""
    runs: bool


def snippets(page: Path) -> Iterator[Snippet]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        indent, language, code = match.groups()
        yield Snippet(
            language=language,
            code=re.sub(rf"^{indent}", "", code, flags=re.MULTILINE),
            line=text.count("\n", 0, match.start(3)) + 1,
            runs=not NOT_RUN.search(text[: match.start()]),
        )


def name_of(page: Path) -> str:
    """Return how tests call a page."""
    return page.relative_to(ROOT).as_posix()


def pages_with(language: str) -> list[Path]:
    """Return the pages with a snippet in a language."""
    return [page for page in PAGES if any(s.language == language for s in snippets(page))]


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_python_snippets_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who copies them all into one program gets what the page says."""
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")  # opens no window
    write_log(tmp_path / "scheduler_profiling.jsonl", records(200))
    write_log(tmp_path / "tuesday.jsonl", records(200, seed=1, run_id="tuesday"))
    namespace: dict[str, object] = {"__name__": "snippet"}
    for snippet in snippets(page):
        if snippet.language == "python" and snippet.runs:
            # Blank lines before the code give a traceback the line numbers of the page.
            code = "\n" * (snippet.line - 1) + snippet.code
            exec(compile(code, name_of(page), "exec"), namespace)
    plt.close("all")


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the commands of the shell blocks of a page, each with its line number."""
    for snippet in snippets(page):
        if snippet.language == "bash":
            for number, line in enumerate(snippet.code.splitlines(), snippet.line):
                words = shlex.split(re.split(r"\s[|<>]\s", line)[0], comments=True)
                if words:
                    yield number, words


@pytest.mark.parametrize("page", pages_with("bash"), ids=name_of)
def test_the_shell_commands_of_a_page_are_ones_that_exist(page: Path) -> None:
    """Our command takes the arguments shown; targets of make and scripts are in the tree."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for number, (program, *arguments) in commands(page):
        place = f"{name_of(page)}:{number}"
        if program == "sched-profiler":
            assert parses(arguments), place
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE), place
        elif program == "python" and arguments[0].endswith(".py"):
            assert (ROOT / arguments[0]).is_file(), place


LOGS = (
    "scheduler_profiling.jsonl",
    *("before.jsonl", "before-1.jsonl", "before-2.jsonl", "budget256.jsonl"),
    *("after.jsonl", "after-1.jsonl", "after-2.jsonl", "budget2048.jsonl"),
    *("rank0.jsonl", "rank1.jsonl"),
    *(f".demo{folder}/scheduler_profiling.jsonl" for folder in ("", "/stalled", "/fixed")),
    "var/log/vllm/sched.jsonl",
    "store/bucket/prefix/scheduler_profiling.jsonl",
    "store/bucket/vllm/2026-11-24/scheduler_profiling.20261124T113336.123Z-gpu7-0-1.jsonl",
)
"""The logs that the pages name; of a bucket and of the root of the disk, see `here`."""

LEFT_OUT = {
    r"\btune |--trace": "replays with vLLM's scheduler; see engines/test_vllm_replay.py",
    r"\btop (?!.*--once)": "ends when somebody ends it; see test_top.py",
    r"--dask": "needs a cluster; see analysis/test_cluster.py",
}
"""Commands of the pages that are not run, and why."""


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all logs that the pages name, each of a run of its own."""
    folder = tmp_path_factory.mktemp("logs")
    for number, name in enumerate(LOGS):
        log = folder / name
        log.parent.mkdir(parents=True, exist_ok=True)
        run = f"run{number}"
        batches = (
            attrs.evolve(one, num_new_reqs=one.batch_id % 3, num_finished_reqs=one.batch_id % 3)
            for one in records(150, seed=number, run_id=run)
        )
        write_log(log, batches)
    return folder


def here(argument: str, folder: Path) -> str:
    """Return what stands in the folder for a place outside of it."""
    for place, stands_for_it in (("s3://", "store/"), ("/var/log/", "var/log/"), ("~/", "home/")):
        argument = argument.replace(place, f"{folder}/{stands_for_it}")
    return argument.replace("12345", str(os.getpid()))


def leave_in(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a part in a spool, as an engine does that ends before its store is reached."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        sink = RemoteSink("memory://bucket/of-the-docs/", spool=spool)
        with BatchProfiler(sink, background=False) as profiler:
            serve(profiler, 1)


@pytest.mark.parametrize("page", pages_with("bash"), ids=name_of)
def test_the_commands_of_a_page_do_what_a_reader_expects(
    page: Path,
    logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after the other, on logs of the names on the page, each ends well and says something."""
    shutil.copytree(logs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    leave_in(tmp_path / "home/.local/state/sched_profiler/spool", monkeypatch)
    for number, (program, *arguments) in commands(page):
        place = f"{name_of(page)}:{number}"
        line = " ".join(arguments)
        if program != "sched-profiler" or any(re.search(left, line) for left in LEFT_OUT):
            continue
        code = cli.main([here(argument, tmp_path) for argument in arguments])
        out, err = capsys.readouterr()
        # The doctor is asked about a process that is no server.
        assert code == 0 or (code == 1 and arguments[0] == "doctor"), f"{place}: {err}"
        assert out, place
        if "--json" in arguments:
            json.loads(out)
        for option in ("--out", "-o"):
            if option in arguments:
                written = tmp_path / arguments[arguments.index(option) + 1]
                assert written.is_file() or any(written.iterdir()), place


def test_what_is_left_out_of_the_commands_is_on_a_page() -> None:
    """And most commands are not left out."""
    lines = [
        " ".join(arguments)
        for page in pages_with("bash")
        for _, (program, *arguments) in commands(page)
        if program == "sched-profiler"
    ]
    left_out = {name: [x for x in lines if re.search(name, x)] for name in LEFT_OUT}
    assert all(left_out.values())
    assert sum(map(len, left_out.values())) < len(lines) / 3


def parses(arguments: list[str]) -> bool:
    """Tell whether the command line takes these arguments."""
    try:
        cli._parser("sched-profiler").parse_args(arguments)
    except SystemExit as end:
        return not end.code  # --help and --version end it as well
    return True


@pytest.mark.parametrize("page", [*PAGES, *TRANSLATIONS], ids=name_of)
def test_every_internal_link_of_a_page_leads_somewhere(page: Path) -> None:
    """The file is there, and so is the heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = Path(os.path.normpath(page.parent / path)) if path else page
        if file.is_relative_to(ROOT / "docs/schema"):
            # The site has a copy of the schemas.
            file = ROOT / file.relative_to(ROOT / "docs")
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def without_code(page: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as both GitHub and mkdocs make them."""
    generate = generator()
    return set(map(generate.anchor, generate.headings(page.read_text(encoding="utf-8"))))


def translation_of(page: Path) -> Path:
    """Return where the Chinese translation of a page is."""
    return page.with_suffix(".zh.md")


def test_home_tutorial_and_how_tos_have_a_chinese_translation() -> None:
    """These and no others: a translation does not outlive its page."""
    assert set(TRANSLATIONS) == set(map(translation_of, TRANSLATED))


def test_every_translated_page_has_a_chinese_title_in_the_navigation() -> None:
    """No entry is missing, and none is left over."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (nav,) = re.findall(r"^nav:\n(.*?)^# ", text, re.MULTILINE | re.DOTALL)
    (translated,) = re.findall(r"nav_translations:\n((?: {12}.+\n)+)", text)
    sections = {title: pages for entry in yaml.safe_load(nav) for title, pages in entry.items()}
    titles = {*sections}
    for section in ("Tutorial", "How to"):
        titles |= {title for page in sections[section] for title in page}
    assert {*yaml.safe_load(translated)} == titles


MARKS = r"^ *<!-- .+ -->$"
FRAMES = r"^ *(?:\d+\.|[-|]|!\[)"
"""What begins a list item, a row of a table or a picture."""


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_a_translation_has_all_that_its_page_has(page: Path) -> None:
    """The same code, marks, headings, rows, links and pictures in the same order.

    If not, the page was changed: change the translation beside it as well.
    """
    translation = translation_of(page)
    code, translated_code = ([s.code for s in snippets(p)] for p in (page, translation))
    assert translated_code == code
    text, translated = without_code(page), without_code(translation)
    levels = [re.findall(r"^#+(?= )", t, re.MULTILINE) for t in (translated, text)]
    assert levels[0] == levels[1]
    for pattern in (MARKS, FRAMES):
        found = [re.findall(pattern, t, re.MULTILINE) for t in (translated, text)]
        assert found[0] == found[1]
    links = [sorted(re.findall(r"\]\(([^)\s]+)\)", t)) for t in (translated, text)]
    assert links[0] == links[1]
    names = [set(re.findall(r"`([^`\n]+)`", t)) for t in (translated, text)]
    assert names[0] == names[1]


def test_the_headings_of_a_translation_have_the_anchors_of_its_page() -> None:
    """A link to a part of a page leads there in every language."""
    text = "# 指标\n\n```bash\n# no heading\n```\n\n## 代价\n"
    original = "# Export metrics\n\n## What it costs\n"
    assert generator().with_anchors(text, original) == (
        "# 指标 {#export-metrics}\n\n```bash\n# no heading\n```\n\n## 代价 {#what-it-costs}\n"
    )


@functools.cache
def generator() -> ModuleType:
    """Return the hook that generates parts of the documentation."""
    return load_script(ROOT / "docs/tools/generate.py")


def test_what_the_tutorial_about_a_stall_shows_was_printed_by_its_commands() -> None:
    """What `docs/tools/stall.py` ran is what the page tells a reader to run, in all its parts."""
    page = ROOT / "docs/tutorial/find-a-stall.md"
    measured = json.loads((ROOT / "docs/measured/stall.json").read_text(encoding="utf-8"))
    ran = {f"sched-profiler {name}" for name in measured["printed"] if " " in name}
    shown = {" ".join(words) for _, words in commands(page)}
    assert len(ran) == 4
    assert ran <= shown
    marks = re.findall(r"^<!-- generated: (stall .+) -->$", page.read_text("utf-8"), re.MULTILINE)
    text = "\n".join(generator().GENERATORS[mark]() for mark in marks)
    for name, printed in measured["printed"].items():
        assert printed in text, name


@pytest.mark.parametrize("page", ["install.md", "install.zh.md"])
def test_how_to_install_says_what_was_measured_of_the_package(page: str) -> None:
    """`make package` measured it; see CONTRIBUTING."""
    text = (ROOT / "docs/how-to" / page).read_text(encoding="utf-8")
    measured = json.loads((ROOT / "docs/measured/package.json").read_text(encoding="utf-8"))
    assert f" {measured['base_install_bytes'] / 1e6:.1f} MB" in text
    took = measured["import_ms"]
    assert f" {took['import sched_profiler']:.0f} ms" in text
    assert f" {round(took['from sched_profiler import *'], -1):.0f} ms" in text


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("README.md", "up to {} times the cost"),
        ("docs/how-to/bound-the-cost.md", "up to {} times the cost"),
        ("docs/how-to/bound-the-cost.zh.md", "最多是 {} 倍"),
    ],
)
def test_what_pages_say_of_the_cost_without_c_was_measured(page: str, words: str) -> None:
    """The most of what the table on the page about the cost has in that column."""
    header, _, *rows = generator().GENERATORS["hook cost ratios"]().splitlines()
    column = header.split(" | ").index("sched_profiler without C")
    most = max(float(row.split(" | ")[column]) for row in rows)
    assert words.format(most) in (ROOT / page).read_text(encoding="utf-8")


def test_what_pages_say_of_the_size_of_a_log_is_that_of_the_demo(tmp_path: Path) -> None:
    """Bytes of a record, and what compression makes of them: of the log in the checkout."""
    text = gzip.decompress((ROOT / "examples/first_look.jsonl.gz").read_bytes())
    size = round(len(text) / text.count(b"\n") / 10) * 10
    for name in (
        "README.md",
        "docs/how-to/attach-to-vllm-serve.md",
        "docs/how-to/bound-the-cost.md",
    ):
        assert f"about {size} bytes" in (ROOT / name).read_text(encoding="utf-8")
    for name in ("attach-to-vllm-serve.zh.md", "bound-the-cost.zh.md"):
        assert f"约 {size} 字节" in (ROOT / "docs/how-to" / name).read_text(encoding="utf-8")
    log = tmp_path / "log.jsonl"
    log.write_bytes(text)
    share = round(len(text) / compress(log, "gzip").stat().st_size)
    for name, pronoun in (("rotate-the-log.md", "its"), ("bound-the-cost.md", "their")):
        page = ROOT / "docs/how-to" / name
        assert f"a {share}th of {pronoun} size" in page.read_text(encoding="utf-8")
        assert f"1/{share}" in translation_of(page).read_text(encoding="utf-8")
    page = ROOT / "docs/how-to/bound-the-cost.md"
    for limited in (page, translation_of(page)):
        text_of_page = limited.read_text(encoding="utf-8")
        assert "SCHED_PROFILER_KEEP_MIB=2048" in text_of_page
        assert f" {2 * share} GiB" in text_of_page


def test_the_readme_has_the_17_fields_as_the_class_has_them() -> None:
    """Order, type, unit, meaning and null case; if not: see CONTRIBUTING, Documentation."""
    table = generator().field_table(optional=False)
    assert table.count("\n") == 1 + 17
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_generated_part_of_a_page_is_known_and_filled() -> None:
    """A misspelled name would be an error, an unused one dead code."""
    generate = generator()
    used = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        used |= set(re.findall(r"^<!-- generated: (.+) -->$", text, re.MULTILINE))
    assert used == set(generate.GENERATORS)
    assert "`num_dropped_records`" in generate.on_page_markdown(
        "<!-- generated: optional fields -->"
    )
    assert "--skip-invalid" in generate.on_page_markdown("<!-- generated: help analyze -->")


def test_what_a_schema_demands_is_rendered_from_its_file() -> None:
    """Of each field: type, limits, and whether it is required."""
    table = generator().schema_table("batch-record")
    assert "| `kv_cache_usage` | number | ≥ 0; ≤ 1 | yes |" in table
    assert "| `prefill_chunk_sizes` | array of integer | each ≥ 1 | yes |" in table
    assert "| `request_ids` | array of string or null |  | no |" in table
    table = generator().schema_table("request-trace")
    assert '| one of "finished", "aborted", "failed", "unfinished" | yes |' in table


@pytest.mark.parametrize("page", pages_with("yaml"), ids=name_of)
def test_the_yaml_of_a_page_can_be_read(page: Path) -> None:
    """What a reader pastes into a cluster or into Prometheus."""
    for snippet in snippets(page):
        if snippet.language == "yaml":
            assert isinstance(yaml.safe_load(snippet.code), dict)


def test_what_pages_say_of_packages_and_images_is_so() -> None:
    """The group of the sinks, the versions of vLLM that were tested, the names of the extras."""
    languages = set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in PAGES:
        for language, code in ((s.language, s.code) for s in snippets(page)):
            languages.add(language)
            if language == "toml":
                assert {*tomllib.loads(code)["project"]["entry-points"]} <= {
                    *project["entry-points"]
                }
            elif language == "dockerfile":
                (version,) = re.findall(r"^FROM vllm/vllm-openai:v(.+)$", code, re.MULTILINE)
                assert version_warning(version) is None
                (extras,) = re.findall(r"sched_profiler\[(.+)\]", code)
                assert {*extras.split(",")} <= {*project["optional-dependencies"]}
            elif language == "ini":
                assert all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in code.splitlines())
    assert {"toml", "dockerfile", "ini"} <= languages


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_settings_in_the_code_of_a_page_exist(page: Path) -> None:
    """Nothing would say that one is misspelled."""
    code = "\n".join(snippet.code for snippet in snippets(page))
    assert {*re.findall(r"\b(?:SCHED_PROFILER|VLLM_(?:ENABLE_)?SCHEDULER)_\w+", code)} <= {
        *settings.VARIABLES
    }


EXPORTED = re.compile(r"\bsched_profiler_\w+")


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Return all names that Prometheus gets of a batch."""
    registry = CollectorRegistry()
    sink = PrometheusSink(registry=registry)
    sink.write(next(iter(records(1))))
    text = generate_latest(registry).decode()
    sink.close()
    return {*EXPORTED.findall(text)}


def test_the_dashboard_asks_for_metrics_that_are_exported(exported: set[str]) -> None:
    """A panel over a name that nobody exports stays empty, and nobody is told."""
    text = (ROOT / "examples/grafana_dashboard.json").read_text(encoding="utf-8")
    dashboard = json.loads(text)
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {name for expression in asked for name in EXPORTED.findall(expression)} <= exported
    assert all(EXPORTED.search(expression) for expression in asked)
    assert {*EXPORTED.findall(json.dumps(dashboard["templating"]))} <= exported


def test_the_dashboard_has_the_panels_that_its_page_explains() -> None:
    """Each panel is in the table, and nothing else is."""
    text = (ROOT / "examples/grafana_dashboard.json").read_text(encoding="utf-8")
    panels = [panel["title"] for panel in json.loads(text)["panels"]]
    page = (ROOT / "docs/how-to/see-it-in-grafana.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z].+?) \|", page, re.MULTILINE)
    together = {
        "Tokens scheduled, Requests in a batch": ["Tokens scheduled", "Requests in a batch"]
    }
    assert [title for row in rows for title in together.get(row, [row])] == panels


@pytest.mark.parametrize("page", ["how-to/see-it-in-grafana.md", "reference/metrics.md"])
def test_the_queries_on_a_page_are_of_metrics_that_are_exported(
    page: str, exported: set[str]
) -> None:
    """A rule over a name that nobody exports never fires."""
    text = generator().on_page_markdown((ROOT / "docs" / page).read_text(encoding="utf-8"))
    prefixes = {"sched_profiler_"}
    histograms = {name.removesuffix("_bucket") for name in exported}
    assert {*EXPORTED.findall(text)} - prefixes <= exported | histograms


def table_rows(page: Path) -> dict[str, list[str]]:
    """Return the table rows of a page whose first cell is code, by that code."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


VARIABLES = {
    field.name: variable
    for field, variable in zip(attrs.fields(settings.Settings), settings.VARIABLES, strict=True)
}


@pytest.mark.parametrize("page", ["README.md", "docs/reference/settings.md"])
def test_the_settings_are_described_with_their_defaults(page: str) -> None:
    """The README has the three of the original feature, the reference has all."""
    rows = table_rows(ROOT / page)
    described = {name for name in rows if re.match("VLLM_|SCHED_PROFILER_", name)}
    expected = set(VARIABLES.values())
    if page == "README.md":
        expected = {name for name in expected if name.startswith("VLLM_")}
    assert described == expected
    for field, variable in VARIABLES.items():
        if variable in described:
            default = getattr(settings.Settings(), field)
            shown = ",".join(default) if isinstance(default, tuple) else str(default)
            shown = shown.lower() if isinstance(default, bool) else shown
            assert rows[variable][0] == ("unset" if default is None else f"`{shown}`")


def test_contributing_lists_the_modules_of_the_tree() -> None:
    """The architecture page is about the code that is there."""
    modules = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        if not path.stem.startswith("__")
    }
    modules |= {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.c")}
    assert set(table_rows(ROOT / "CONTRIBUTING.md")) == modules


def test_the_readme_has_every_command() -> None:
    """A stranger sees there what it can do."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, table = text.partition("| command | what it does |\n")
    named = re.findall(r"^\| `([a-z]+)[^`]*` \|", table.split("\n\n")[0], re.MULTILINE)
    assert sorted(named) == sorted(command.name for command in cli.COMMANDS)


def test_the_reference_has_every_public_name() -> None:
    """What is in an `__all__` can be looked up."""
    text = (ROOT / "docs/reference/python-api.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    public = {f"sched_profiler.{name}" for name in sched_profiler.__all__}
    public |= {f"sched_profiler.analysis.{name}" for name in analysis.__all__}
    assert public <= described


def test_the_command_line_reference_has_every_file_that_analyze_writes(tmp_path: Path) -> None:
    """`--out` writes what the table says, and nothing else."""
    log = write_log(tmp_path / "log.jsonl", records(20))
    assert cli.main(["analyze", str(log), "--out", str(tmp_path / "out")]) == 0
    rows = table_rows(ROOT / "docs/reference/command-line.md")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {name for name in rows if "." in name}
