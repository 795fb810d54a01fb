"""The example notebook runs, and shows what it says it does."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import load_script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Return the script that executes the notebook."""
    return load_script(ROOT / "docs/tools/notebook.py")


def shown(notebook: dict[str, Any]) -> list[Any]:
    """Return what the cells of a notebook show; of a picture, only that it is there."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    for output in outputs:
        if "text/html" in output.get("data", ()):
            # Jupyter shows the HTML. The text beside it may have all digits of a number, of which
            # the last ones differ with the version of numpy.
            del output["data"]["text/plain"]
        if "image/png" in output.get("data", ()):
            # It differs with the fonts, and its text with where the figure is in the memory.
            output["data"] = {"image/png": "a picture"}
    return outputs


def test_the_notebook_shows_what_it_shows_when_it_is_executed(tool: ModuleType) -> None:
    """Every cell runs without an error, and nothing in it is old."""
    with warnings.catch_warnings():
        # What the client says of its own event loops is not ours to mend.
        warnings.simplefilter("ignore")
        now = shown(tool.executed())
    kept = shown(json.loads(tool.NOTEBOOK.read_text(encoding="utf-8")))
    assert now == kept
    kinds = [kind for output in kept for kind in output.get("data", ())]
    assert kinds.count("image/png") == 2
    assert kinds.count("text/html") >= 3


def test_the_page_has_every_cell_and_what_it_shows(tool: ModuleType) -> None:
    """Pictures are in it, so that it needs no file beside it."""
    page = tool.page()
    notebook = json.loads(tool.NOTEBOOK.read_text(encoding="utf-8"))
    assert all("".join(cell["source"]) in page for cell in notebook["cells"])
    assert page.count("data:image/png;base64,") == 2
    assert "<table" in page
