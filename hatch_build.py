"""Builds the C part of the package, where there is a C compiler; without it the package is slower.

hatchling calls it for a wheel and for an editable install.
"""

from __future__ import annotations

import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension

MODULE = "sched_profiler.engines._vllm_hook"


class CBuildHook(BuildHookInterface):
    """Compiles `MODULE` beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling passes it
        """Compile, and have the wheel hold the result and say for which Python it is."""
        stem = MODULE.replace(".", "/")
        built = Path(self.root, stem + sysconfig.get_config_var("EXT_SUFFIX"))
        # What an older source left must not pass for this one, here or in a folder of builds.
        built.unlink(missing_ok=True)
        # Debug information would name the folder of the build: no two builds would be alike.
        extension = Extension(MODULE, [f"{stem}.c"], optional=True, extra_compile_args=["-g0"])
        command = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
        command.inplace = True
        # Without its lock the interpreter has no plain reads of lists and dicts.
        if not sysconfig.get_config_var("Py_GIL_DISABLED"):
            with tempfile.TemporaryDirectory() as scratch:
                command.build_temp = command.build_lib = scratch
                command.ensure_finalized()
                command.run()
        if built.exists():
            build_data["artifacts"].append(built.relative_to(self.root).as_posix())
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
        else:
            self.app.display_warning("no C compiler: the hook will be in Python, and dearer")
