"""Leaves a random sample of a session's mutants to be judged: `python tests/mutation/sample.py SESSION COUNT SEED`."""

from __future__ import annotations

import random
import sys

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome, WorkResult


def main(session: str, count: str, seed: str) -> None:
    """Marks all others of the pending mutants as skipped."""
    with use_db(session, WorkDB.Mode.open) as database:
        pending = sorted(database.pending_work_items, key=_place)
        kept = {
            item.job_id for item in random.Random(int(seed)).sample(pending, min(int(count), len(pending)))
        }
        for item in pending:
            if item.job_id not in kept:
                database.set_result(
                    item.job_id, WorkResult(WorkerOutcome.SKIPPED, output="not in the sample")
                )
    print(f"{session}: {len(kept)} of {len(pending)} mutants are left to be judged")


def _place(item: object) -> tuple[str, str, int]:
    (mutation,) = item.mutations  # type: ignore[attr-defined]
    return str(mutation.module_path), mutation.operator_name, mutation.occurrence


if __name__ == "__main__":
    main(*sys.argv[1:])
