"""How long it takes to list and read the records of 10,000 cells.

python benchmarks/store.py
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from objbench.cells.result import CellResult
from objbench.cells.store import Store, write_record

CELLS = 10_000

CELL = CellResult(
    cell="",
    model="gmair",
    data="multimnist",
    protocol="demo",
    seed=0,
    status="done",
    metrics={f"metric_{i}": i / 17 for i in range(14)},
    seconds=140.25,
    train_steps=2000,
    model_config={f"option_{i}": i / 7 for i in range(40)},
    data_config={f"option_{i}": i for i in range(12)},
    provenance={
        "packages": {f"package_{i}": "1.2.3" for i in range(8)},
        "warnings": [],
        "wall_seconds": 150.5,
    },
)


def rows() -> list[dict[str, Any]]:
    """One row a figure: name, value, unit, note."""
    with tempfile.TemporaryDirectory() as out:
        store = Store(out)
        store.prepare()
        with patch("os.fsync"):  # making the example is not what is timed
            for number in range(CELLS):
                key = f"{number:016x}/own"
                folder = store.folder(key)
                folder.mkdir(parents=True)
                write_record(folder, replace(CELL, cell=key))
        size = (folder / "record.json").stat().st_size
        start = time.perf_counter()
        results, warnings = store.results()
        read = time.perf_counter() - start
    assert len(results) == CELLS, warnings[:3]
    note = f"{CELLS:,} records of {size:,} bytes, checksums included; asked for: under 5"
    return [{"name": "store: read all", "value": read, "unit": "s", "note": note}]


if __name__ == "__main__":
    for row in rows():
        print(f"{row['name']:<20} {row['value']:>8.2f} {row['unit']:<4} {row['note']}")
