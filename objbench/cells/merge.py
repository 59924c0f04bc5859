"""Makes one store of several: what is to be copied, found out before anything is written, and the copying.

A training goes as a whole, with its cells. Of one that several stores hold, that which ended is taken, else that which
came furthest; the target's own, then the first store's, where that decides nothing. Two that ended with different
detections, or one cell with different figures, are a contradiction: which of them is right nobody can tell.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from objbench.cells.files import Damaged, verify_checksums
from objbench.cells.result import CellResult, Trained
from objbench.cells.store import Store, position, read_record, read_trained
from objbench.errors import UsageError

RAW = ("detections.safetensors", "truth.safetensors")
"""The files of a training that figures are computed from."""
SET_ASIDE = re.compile(r"\.(broken|old)-\d+$")
"""Names of what was set aside: it is not copied."""


@dataclass
class Merge:
    """What is to be done, and what cannot be."""

    trainings: dict[str, Store] = field(default_factory=dict)
    """Key -> where it comes from, of the trainings that the target lacks, or has only in part."""
    cells: dict[str, Store] = field(default_factory=dict)
    """Key -> where it comes from, of the cells that the target is to get; also those of `trainings`."""
    kept: list[str] = field(default_factory=list)
    """The cells that the target has already."""
    left_out: list[str] = field(default_factory=list)
    """A line for each training or cell that cannot be believed."""


@dataclass(frozen=True)
class _Held:
    """A training in one store."""

    store: Store
    trained: Trained | None
    steps: int
    cells: dict[str, tuple[CellResult, dict[str, str]]]
    """Its cells that can be believed, each with the checksums of its files."""


def plan_merge(stores: Sequence[Store], target: Store) -> Merge:
    """What to copy into the target so that it holds all that the stores do. Reads every file, and writes none.

    UsageError where two results contradict each other, naming both, and where a process is at work in a store.
    """
    merge = Merge()
    holders: dict[str, list[_Held]] = {}
    ours = os.path.realpath(target.out)
    others = [store for store in stores if os.path.realpath(store.out) != ours]
    for store in [target, *others]:
        cells: dict[str, list[str]] = {}
        for key in store.cell_keys():
            cells.setdefault(key.partition("/")[0], []).append(key)
        for training, keys in cells.items():
            if store.locked(training):
                raise _at_work(store, training)
            try:
                held = _held(store, training, keys, merge.left_out)
            except Damaged as error:
                merge.left_out.append(f"{store.folder(training)} is left out: {error}")
                continue
            holders.setdefault(training, []).append(held)
    for training, helds in sorted(holders.items()):
        _choose(training, helds, target, merge)
    return merge


def _held(store: Store, training: str, keys: Sequence[str], left_out: list[str]) -> _Held:
    trained = store.verify_training(training)
    cells = {}
    for key in keys:
        try:
            if (result := store.verify(key)) is not None:
                cells[key] = result, read_record(store.folder(key))[1]
        except Damaged as error:
            left_out.append(f"{store.folder(key)} is left out: {error}")
    return _Held(store, trained, position(store.folder(training)).step, cells)


def _choose(training: str, helds: Sequence[_Held], target: Store, merge: Merge) -> None:
    """Decides where a training and its cells come from."""
    best = max(helds, key=lambda h: (h.trained is not None, h.steps))  # the first of equals
    alike = [best]
    if best.trained is not None:
        alike += [h for h in helds if h is not best and h.trained is not None]
    for other in alike[1:]:
        assert best.trained is not None
        assert other.trained is not None
        if any(best.trained.files.get(name) != other.trained.files.get(name) for name in RAW):
            raise _contradiction(best, other, training, "its detections differ")
    if best.store is not target:
        merge.trainings[training] = best.store
    for key in dict.fromkeys(key for held in alike for key in held.cells):
        having = [held for held in alike if key in held.cells]
        first = max(having, key=lambda held: held.cells[key][0].status == "done")
        for other in having:
            if other.cells[key][0].status == "done" and (what := _differ(first.cells[key], other.cells[key])):
                raise _contradiction(first, other, key, what)
        if first.store is target and best.store is target:
            merge.kept.append(key)
        else:
            merge.cells[key] = first.store


def _differ(one: tuple[CellResult, dict[str, str]], other: tuple[CellResult, dict[str, str]]) -> str:
    """What sets two finished results of a cell apart, whose detections are the same; "" if nothing."""
    (a, files), (b, others) = one, other
    name = "clusters.safetensors"
    if files.get(name) != others.get(name):
        return "its clusters differ"
    if a.provenance.get("metric_versions") != b.provenance.get("metric_versions"):
        return ""  # a report computes them again
    for metric in a.metrics.keys() | b.metrics.keys():
        x, y = a.metrics.get(metric, math.nan), b.metrics.get(metric, math.nan)
        if not (math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(x) and math.isnan(y))):
            return f"its {metric} is {x:.6g} and {y:.6g}"
    return ""


def _contradiction(one: _Held, other: _Held, key: str, what: str) -> UsageError:
    result = next((r for held in (one, other) for r, _ in held.cells.values()), None)
    named = f" ({result.model} on {result.data}, seed {result.seed})" if result else ""
    return UsageError(
        f"two different results for {key}{named}: {one.store.folder(key)} and {other.store.folder(key)}: {what}; "
        "nothing was written; remove one with objbench rm, or leave out its store"
    )


def _at_work(store: Store, training: str) -> UsageError:
    return UsageError(
        f"{store.folder(training)} is being written ({store.holder(training)}); nothing was written; merge again when "
        "it has ended"
    )


def carry_out(merge: Merge, target: Store) -> None:
    """Copies what was planned beside the target, checks the copies, and then puts them in place, each as a whole.

    UsageError where that cannot be done, or something changed meanwhile; the target is then as it was.
    """
    if not merge.cells:
        return
    target.prepare()
    locks: list[int] = []
    staging = Path(tempfile.mkdtemp(prefix=".merge-", dir=target.out))
    beside = Store(staging)
    try:
        keys = sorted({*merge.trainings, *(key.partition("/")[0] for key in merge.cells)})
        for training in keys:
            if (lock := target.lock(training)) is None:
                raise _at_work(target, training)
            locks.append(lock)
        for training in keys:
            _copy(merge, training, target, beside)
        for training in keys:
            for source in {s.out: s for s in _sources(merge, training)}.values():
                if source is not target and source.locked(training):
                    raise _at_work(source, training)
        for training in keys:
            _put_in_place(merge, training, target, beside)
    except Damaged as error:
        raise UsageError(
            f"a store changed while it was merged ({error}); nothing was written; merge again"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot merge into {target.out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for lock in locks:
            os.close(lock)


def _sources(merge: Merge, training: str) -> Iterator[Store]:
    if training in merge.trainings:
        yield merge.trainings[training]
    yield from (store for key, store in merge.cells.items() if key.startswith(f"{training}/"))


def _copy(merge: Merge, training: str, target: Store, beside: Store) -> None:
    """Copies a training's files, if the target needs them, and its cells; Damaged when a copy is not as recorded."""
    folder = beside.folder(training)
    folder.mkdir(parents=True)
    if training in merge.trainings:
        source = merge.trainings[training].folder(training)
        for entry in source.iterdir():
            if entry.is_dir() and "." in entry.name and not _skipped(entry.name):  # log.tensorboard
                shutil.copytree(entry, folder / entry.name)
            elif entry.is_file() and not _skipped(entry.name):
                shutil.copy2(entry, folder / entry.name)
        beside.verify_training(training)
    for key, store in merge.cells.items():
        if key.startswith(f"{training}/"):
            copied = beside.folder(key)
            shutil.copytree(store.folder(key), copied, ignore=lambda _, names: filter(_skipped, names))
            verify_checksums(copied, read_record(copied)[1])
            if read_record(copied)[0].status == "done" and training in merge.trainings:
                read_trained(folder)


def _put_in_place(merge: Merge, training: str, target: Store, beside: Store) -> None:
    """Renames the copies of a training; what they replace is set aside."""
    if training in merge.trainings:
        if os.path.lexists(target.folder(training)):
            target.set_aside(training, "old")
        beside.folder(training).rename(target.folder(training))
        return
    for copied in sorted(beside.folder(training).iterdir()):
        key = f"{training}/{copied.name}"
        if os.path.lexists(target.folder(key)):
            target.set_aside(key, "old")
        copied.rename(target.folder(key))


def _skipped(name: str) -> bool:
    return name.startswith(".") or bool(SET_ASIDE.search(name))
