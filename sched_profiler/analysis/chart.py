"""A figure that a notebook shows."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["Chart"]

_DPI = 72


class Chart(Figure):
    """A figure that shows itself in a notebook, also where nobody has set pyplot up."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, format="png", dpi=_DPI)
        return image.getvalue()
