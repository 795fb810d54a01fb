"""What tests need of the machine, beyond what `make setup` brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["c_compiler", "lacks", "mounted"]


def lacks(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run; fail where `.ci/run` says that none is left out."""
    if os.environ.get("LEAVE_NO_TEST_OUT"):
        pytest.fail(reason)
    pytest.skip(reason)


def c_compiler() -> str | None:
    """Return the compiler that builds the hook, or None where there is none."""
    return shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])


@contextmanager
def mounted(folder: Path, option: str) -> Iterator[bool]:
    """Mount a small disk on `folder`, which is made; yield whether the system allows that."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
    is_there = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_there
    finally:
        if is_there:
            subprocess.run(["umount", "-l", str(folder)], check=True)
