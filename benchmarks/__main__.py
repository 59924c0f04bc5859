"""Every benchmark in one table: `python -m benchmarks [NAME ...] [--json FILE]`, and two records side by side:
`python -m benchmarks --compare OLD.json NEW.json`. `python -m benchmarks storm` is a trial of faults: see storm.py.

A benchmark is a module of this package with `rows()`: dicts of name, value, unit and note. Compare figures of one run,
as ratios; a machine's absolute figures drift.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pkgutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import benchmarks


def main() -> int:
    """Runs what was asked for, or compares two records."""
    if sys.argv[1:2] == ["storm"]:  # has options of its own
        from benchmarks.storm import main as storm

        return storm(sys.argv[2:])
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if has_rows(m.name))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(names)} (all when none)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also keep the figures, with hardware and versions"
    )
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="two kept records")
    parsed = parser.parse_args()
    if parsed.compare:
        return compare(*parsed.compare)
    if strange := sorted(set(parsed.names) - set(names)):
        parser.error(f"no benchmark named '{strange[0]}' (benchmarks: {', '.join(names)})")
    found: list[dict[str, Any]] = []
    for name in parsed.names or names:
        print(f"running {name} ...", file=sys.stderr)
        # A process each: what one leaves behind, threads above all, is not to slow the next.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
            rows = apart.submit(benchmarks.rows_of, name).result()
        for row in rows:
            found.append(row)
            print(f"{row['name']:<44} {row['value']:>12,.4g} {row['unit']:<9} {row['note']}", flush=True)
    if parsed.json:
        import torch

        from objbench.run.provenance import provenance

        record = {"rows": found, "provenance": provenance(torch.device("cpu"))}
        parsed.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def has_rows(name: str) -> bool:
    """Whether a module of this package is a benchmark; it is read, not run."""
    return "\ndef rows(" in Path(benchmarks.__path__[0], f"{name}.py").read_text()


def compare(old: Path, new: Path) -> int:
    """Prints new / old for every figure that both records hold."""
    before, after = (
        {row["name"]: row for row in json.loads(path.read_text())["rows"]} for path in (old, new)
    )
    for name in before.keys() & after.keys():
        ratio = after[name]["value"] / before[name]["value"]
        print(f"{name:<44} {before[name]['value']:>12,.4g} -> {after[name]['value']:>12,.4g}  x{ratio:.2f}")
    for name in sorted(before.keys() ^ after.keys()):
        print(f"{name:<44} only in {old if name in before else new}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
