# ruff: noqa: INP001 - a hook's helper and a script, no package
"""The example notebook: as a page of the documentation, and executed anew.

`python docs/tools/notebook.py` executes it in place. A test holds what it shows to what it says.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "examples/first_look.ipynb"


def executed() -> dict[str, Any]:
    """Execute the notebook in its folder; return it without what differs from time to time."""
    import nbformat  # noqa: PLC0415 - only who executes it needs these
    from nbclient import NotebookClient  # noqa: PLC0415

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = str(NOTEBOOK.parent)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}})
    result: dict[str, Any] = json.loads(nbformat.writes(client.execute()))
    result["metadata"] = {"kernelspec": result["metadata"]["kernelspec"]}
    for number, cell in enumerate(result["cells"]):
        cell["metadata"] = {}
        cell["id"] = f"cell-{number}"
    return result


def page() -> str:
    """Return the notebook as Markdown, with what its cells show."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += map(_output, cell.get("outputs", ()))
    return "\n\n".join(parts)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        # On one line, which Markdown leaves alone.
        return f'<img alt="chart" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    if "text/html" in data:
        return "".join(data["text/html"]).strip().replace("\n\n", "\n")
    return f"<pre>{escape(''.join(data['text/plain']))}</pre>"


if __name__ == "__main__":
    text = json.dumps(executed(), indent=1, ensure_ascii=False)
    NOTEBOOK.write_text(text + "\n", encoding="utf-8")
