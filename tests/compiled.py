"""Keeps what numba compiles for the neighbour embedding, which else takes each process 11 s of CPU time.

umap lets numba compile its functions anew in each process; here they are compiled as functions with `cache=True`. numba
keeps them beside umap, or in the user's cache folder, until umap's files, numba, Python or the processor are others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any


class Finder(MetaPathFinder):
    """Finds nothing, but learns in time that umap is about to be imported."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        """Once, before the first module of umap is found."""
        if name != "umap":
            return
        sys.meta_path.remove(self)
        try:
            import numba
        except ImportError:
            return
        njit = numba.njit

        def cached(*args: Any, **options: Any) -> Any:
            return njit(*args, **{"cache": True, **options})

        numba.njit = cached


def install() -> None:
    """From now on, in this process."""
    sys.meta_path.insert(0, Finder())
