"""Which picture of a folder each entry of a COCO file means: by path, or by base name where that is unique."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from objbench.coco import ListedImage, base_name
from objbench.errors import UsageError
from objbench.images import SUFFIXES, files_in, is_file

USUAL_NAMES = ("annotations.json", "_annotations.coco.json", "instances_*.json")
"""Names of annotations files, with .gz or without."""


def annotations_in(folder: Path) -> Path | None:
    """The file in the folder with one of the usual names; None if there is none. UsageError if there are several."""
    found = sorted(
        {
            path
            for pattern in USUAL_NAMES
            for path in (*folder.glob(pattern), *folder.glob(f"{pattern}.gz"))
            if path.is_file()
        }
    )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"{folder} has several annotations files ({names}); choose one")
    return found[0] if found else None


def pictures_listed(folder: Path, file: Path, rows: Sequence[ListedImage], hint: str = "") -> dict[Path, int]:
    """Each picture in the folder that the file's entries `rows` list, and the index of its entry.

    In the order of the entries. A file name is a path from the file's folder or from `folder`; if there is no such
    picture, its last part counts, if only one picture and one entry have it. Entries of pictures in other places are
    left out. folder: an absolute path without links.

    UsageError when an entry has no picture, or a picture no entry: then the names do not match, and numbering the
    pictures instead would give wrong pairs. hint: what the user can do, at the end of these messages.
    """
    there = files_in(folder, SUFFIXES, below=True)
    by_name: dict[str, list[Path]] = {}
    for picture in there:
        by_name.setdefault(picture.name, []).append(picture)
    names = Counter(base_name(str(row.file_name)) for row in rows)
    found: dict[Path, int] = {}
    missing = []
    for i, row in enumerate(rows):
        name = str(row.file_name)
        path = _at(name, (file.absolute().parent.resolve(), folder))
        if path is not None and not path.is_relative_to(folder):
            path = path.parent.resolve() / path.name  # the folder may be a link that the name leads through
        same = by_name.get(base_name(name), [])
        if path is None and len(same) == 1 and names[base_name(name)] == 1:
            path = same[0]
        if path is None:
            missing.append(name)
        elif path in found:
            raise UsageError(f"{file}: the ids {rows[found[path]].id!r} and {row.id!r} both belong to {path}")
        elif path.is_relative_to(folder):
            if path.suffix.lower() not in SUFFIXES:
                raise UsageError(f"{file}: {json.dumps(name)} is not a PNG or JPEG file by its name")
            found[path] = i
    if missing:
        raise UsageError(
            f"{file}: {len(missing)} of its {len(rows)} images are not in {folder}, such as "
            f"{json.dumps(missing[0])}{hint}"
        )
    if not found:
        raise UsageError(f"{file}: none of its {len(rows)} images is in {folder}{hint}")
    folders = {path.parent for path in found} | {folder}
    if lost := [path for path in there if path not in found and path.parent in folders]:
        raise UsageError(
            f"{file}: does not list {len(lost)} of the pictures in {folder}, such as {lost[0].name}{hint}"
        )
    return found


def _at(name: str, places: tuple[Path, ...]) -> Path | None:
    """The file that a name written on any system leads to from one of these folders."""
    for place in places:
        for spelling in (name, name.replace("\\", "/")):
            with contextlib.suppress(OSError, ValueError):  # a name too long, or with a zero in it
                path = Path(os.path.normpath(place / spelling))
                if is_file(path):
                    return path
    return None
