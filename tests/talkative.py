"""A store whose client is indiscreet."""

from __future__ import annotations

from typing import Any

import fsspec
from credentials import IN_ENVIRON, URL
from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["MemoryFileSystem", "Talkative"]


class Talkative(MemoryFileSystem):
    """A client of storage that puts all it knows into its errors."""

    protocol = "talkative"
    cachable = False
    works = False

    def _refuse(self) -> None:
        if not Talkative.works:
            raise PermissionError(f"refused {URL} with {IN_ENVIRON}")

    def put_file(self, *arguments: Any, **options: Any) -> None:
        self._refuse()
        super().put_file(*arguments, **options)

    def find(self, *arguments: Any, **options: Any) -> Any:
        self._refuse()
        return super().find(*arguments, **options)

    def isdir(self, path: str) -> bool:
        self._refuse()
        return True


fsspec.register_implementation("talkative", Talkative, clobber=True)
