"""HTML of results, as a notebook shows it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["preformatted", "table"]


def preformatted(text: str) -> str:
    """Return an aligned text that stays aligned."""
    return f"<pre>{escape(text)}</pre>"


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return a table; the first cell of a row says what it is."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr><th>{escape(label)}</th>{_cells(cells)}</tr>" for label, *cells in rows)
    heading = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f"<table>{heading}<tbody>{body}</tbody></table>"


def _cells(cells: Iterable[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)
