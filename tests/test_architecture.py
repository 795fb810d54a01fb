"""The picture of the architecture is that of the tree, and imports keep to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from graphlib import TopologicalSorter
from types import ModuleType

import pytest
from scripts import load_script
from test_package import FROM_OUTSIDE, MODULES, PACKAGE, ROOT, imports

PAGE = ROOT / "docs/explanation/architecture.md"


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """Return the script that draws the picture."""
    return load_script(ROOT / "docs/tools/architecture.py")


def test_the_picture_of_the_architecture_has_every_module_in_one_box(
    architecture: ModuleType,
) -> None:
    """No other module, and it is drawn from these boxes; where one changed, draw it again."""
    named = Counter(module for box in architecture.BOXES.values() for module in box.modules())
    assert set(named.values()) == {1}
    assert set(named) == {
        path.relative_to(PACKAGE).as_posix().removesuffix(".py")
        for path in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.c"))
        if not path.stem.startswith("__")
    }
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.draw()
    # What the page says in words is in the picture as well.
    page = PAGE.read_text(encoding="utf-8")
    assert {*re.findall(r"`([a-z_]+/[a-z_]+)`", page)} <= set(named)
    steps = re.findall(r"^\d+\. \*\*(.+)\.\*\* ", page, re.MULTILINE)
    boxes = ", ".join(architecture.BOXES)
    assert len(steps) == 8
    assert all(step.lower() in boxes for step in steps)


def reached(start: str, arrows: Iterable[tuple[str, str]]) -> set[str]:
    """Return the boxes to which arrows lead from one, over others as well."""
    found, left = set(), [start]
    while left:
        box = left.pop()
        found.add(box)
        left += [end for begin, end in arrows if begin == box and end not in found]
    return found


def test_imports_go_along_the_arrows_of_the_architecture(architecture: ModuleType) -> None:
    """With the data in the engine's half, against it in the reader's, and never otherwise."""
    box_of = {
        f"sched_profiler.{module.replace('/', '.')}": name
        for name, box in architecture.BOXES.items()
        for module in box.modules()
    }
    halves = {name: box.half for name, box in architecture.BOXES.items()}
    forwards = [ends for ends in architecture.ARROWS if "reader" not in map(halves.get, ends)]
    backwards = [
        (end, start)
        for start, end in architecture.ARROWS
        if halves[start] == halves[end] == "reader"
    ]
    assert {halves[box] for ends in backwards for box in ends} == {"reader"}
    used = set()
    for module in set(MODULES) & set(box_of):
        box = box_of[module]
        arrows = {"engine": forwards, "reader": backwards}.get(halves[box], [])
        allowed = reached(box, arrows) | {*architecture.COMMON.get(halves[box], ())}
        for other in imports(module) & set(box_of):
            if not (box == "commands" and other in FROM_OUTSIDE):
                assert box_of[other] in allowed, f"{module} imports {other}"
            used.add((box, box_of[other]))
    # The arrows are more than a permission: most are taken by an import.
    arrows = {*forwards, *backwards} - {
        ends for ends in forwards if "outside" in map(halves.get, ends)
    }
    assert len(used & arrows) > len(arrows) / 2


def test_the_boxes_of_the_architecture_have_no_cycle(architecture: ModuleType) -> None:
    """The data goes one way."""
    before: dict[str, set[str]] = {}
    for start, end in architecture.ARROWS:
        before.setdefault(end, set()).add(start)
    assert set(before) | {start for starts in before.values() for start in starts} == {
        *architecture.BOXES
    } - {common for names in architecture.COMMON.values() for common in names}
    TopologicalSorter(before).prepare()
