"""The library is light where it is not used."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from machine import c_compiler, lacks

import sched_profiler

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sched_profiler"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
FROM_OUTSIDE = {"sched_profiler.doctor", "sched_profiler.sinks.upload"}
"""What the command line looks at the engine's half with."""


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_tests_for_a_wheel_that_is_alone_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make package` runs them, which is not part of all other tests."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    tests = importlib.import_module("package").CORE_TESTS
    assert len(tests) > 20
    assert [test for test in tests if not (ROOT / test).is_file()] == []


HEAVY = {
    *("vllm", "torch", "pandas", "matplotlib", "numpy", "polars", "pyarrow"),
    *("prometheus_client", "opentelemetry", "jsonschema", "msgspec"),
}
# What only a URL or a compressed file needs.
EXTRAS = {"fsspec", "s3fs", "aiobotocore", "botocore", "aiohttp", "zstandard"}


@pytest.mark.parametrize("module", ["sched_profiler", "sched_profiler.engines.vllm_plugin"])
def test_importing_loads_nothing_that_is_not_needed(module: str) -> None:
    """vLLM imports the package in every process, also where profiling is off."""
    loaded = modules_after(f"import {module}")
    assert not loaded & (HEAVY | EXTRAS | {"attrs", "cattrs", "orjson", "sched_profiler.profiler"})


def test_profiling_an_engine_needs_neither_vllm_nor_pandas_nor_matplotlib() -> None:
    """An engine's author installs the base package only."""
    assert not modules_after("from sched_profiler import *") & (HEAVY | EXTRAS)


def test_a_log_in_files_loads_nothing_that_a_url_needs() -> None:
    """Rotation and manifest included, and what reads and verifies such a log."""
    code = """
from sched_profiler import BatchProfiler, JsonlSink, Rotation
from sched_profiler import reader, settings, verify
from sched_profiler.engines.vllm_plugin import register
from sched_profiler.sinks import factories, registry
"""
    assert not modules_after(code) & (HEAVY | EXTRAS | {"asyncio", "sched_profiler.store"})


def test_every_public_name_is_there_and_an_unknown_one_is_an_error() -> None:
    """`__all__` is sorted and true."""
    assert sched_profiler.__all__ == sorted(sched_profiler.__all__)
    for name in sched_profiler.__all__:
        assert getattr(sched_profiler, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sched_profiler.nothing  # noqa: B018 - looking it up is the test


def test_a_wheel_holds_the_hook_in_c_and_one_built_without_a_compiler_does_without(
    tmp_path: Path,
) -> None:
    """Both are complete otherwise: modules, schemas, templates, type information.

    And the same sources give the same bytes.
    """
    if c_compiler() is None:
        lacks("there is no C compiler on this machine")
    names, contents = {}, {}
    # A folder's name must not get into the hook: debug information would hold it.
    for kind, compiler in (("c", None), ("c, once more", None), ("python", "no-such-compiler")):
        source = tmp_path / kind
        shutil.copytree(ROOT / "sched_profiler", source / "sched_profiler")
        shutil.copytree(ROOT / "schema", source / "schema")
        for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        subprocess.run(
            [Path(sys.executable).with_name("uv"), "build", "--wheel", "--quiet", "--out-dir", "."],
            cwd=source,
            env=os.environ | ({"CC": compiler} if compiler else {}),
            check=True,
            timeout=120,
        )
        (wheel,) = source.glob("*.whl")
        assert ("-py3-none-any" in wheel.name) == (kind == "python")
        names[kind] = set(zipfile.ZipFile(wheel).namelist())
        contents[kind] = wheel.read_bytes()
    assert contents["c"] == contents["c, once more"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    hook = f"sched_profiler/engines/_vllm_hook{suffix}"
    assert names["c"] - names["python"] == {hook}
    assert names["python"] <= names["c"]
    assert "sched_profiler/py.typed" in names["c"]
    for name in ("batch-record", "run-manifest", "request-trace"):
        assert f"sched_profiler/schema/{name}-v1.schema.json" in names["c"]
    for name in ("report.html", "report.css", "report.js"):
        assert f"sched_profiler/analysis/report/{name}" in names["c"]


def test_the_version_is_in_one_place() -> None:
    """What the build and the installed package say comes from there."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in declared["project"]
    assert declared["tool"]["hatch"]["version"]["path"] == "sched_profiler/__init__.py"
    assert importlib.metadata.version("sched-profiler") == sched_profiler.__version__


def test_every_extra_is_on_the_page_about_installing_with_what_it_brings() -> None:
    """No other, either."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    page = (ROOT / "docs/how-to/install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", page, re.MULTILINE)
    brings = {
        extra: [re.sub(r"^sched-profiler\[(\w+)\]|>=.*", r"\1", each) for each in requirements]
        for extra, requirements in declared["project"]["optional-dependencies"].items()
    }
    assert {extra: names.replace("`", "").split(", ") for extra, names in rows} == brings
    assert [extra for extra, _ in rows] == sorted(brings)
    for classifier in declared["project"]["classifiers"]:
        if found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier):
            assert found[1] in page


def test_workflows_call_what_there_is_and_know_no_secret() -> None:
    """Whatever continuous integration does can be done at home, and publishing needs no token."""
    called = set()
    for path in sorted((ROOT / ".github").rglob("*.yml")):
        text = path.read_text(encoding="utf-8")
        assert yaml.safe_load(text), path
        assert "secrets" not in text
        called |= set(re.findall(r"run: python (\S+)", text))
    assert called == {"tools/links.py", "tools/package.py", "tools/pythons.py"}
    assert all((ROOT / script).is_file() for script in called)
    assert os.access(ROOT / ".ci/run", os.X_OK)
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    assert release["permissions"] == {}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["title"]


def imports(module: str) -> set[str]:
    """Return what of the package a module loads, also within functions, but not for types only."""

    def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child
            elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield from statements(child)

    names: set[str] = set()
    for one in statements(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        found = {alias.name for alias in one.names}
        if isinstance(one, ast.ImportFrom):
            inside = {f"{one.module}.{name}" for name in found}
            found = {name if name in MODULES else str(one.module) for name in inside}
        names |= found
    return names & set(MODULES) - {module}


def sections() -> list[list[str]]:
    """Return the modules of the table in CONTRIBUTING: shared, the engine's half, the reader's."""
    found: list[list[str]] = [[]]
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if re.match(r"\| \*\*(inside the engine|where a log is read)\*\* \|", line):
            found.append([])
        elif named := re.match(r"\| `([\w/]+)` \|", line):
            found[-1].append(f"sched_profiler.{named[1].replace('/', '.')}")
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not even within functions: what is loaded late is loaded all the same."""
    TopologicalSorter({module: imports(module) for module in MODULES}).prepare()


def test_neither_half_imports_the_other() -> None:
    """What measures and what analyses share the first modules of the table, which need neither."""
    shared, engine, reader = sections()
    for module in shared:
        assert not imports(module) & {*engine, *reader}, module
    for module in engine:
        assert not imports(module) & set(reader), module
    for module in reader:
        allowed = FROM_OUTSIDE if ".cli." in module else set()
        assert not imports(module) & set(engine) - allowed, module


def test_imports_go_down_the_table_of_modules() -> None:
    """The table is a map: what a module is made of stands below it."""
    for half in sections()[1:]:
        for place, module in enumerate(half):
            above = imports(module) & set(half[:place]) - FROM_OUTSIDE
            assert not above, f"{module} imports {above}"
