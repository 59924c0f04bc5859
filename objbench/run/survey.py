"""Says what a machine has of what must be the same on all: `python -m objbench.run.survey`, with JSON on stdin."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from objbench.plugins import load_plugins
from objbench.run.luggage import facts


def main() -> None:
    """Reads {"plugins": files, "names": names of plugins}; prints {"facts": ...}, or {"error": a line}."""
    asked = json.load(sys.stdin)
    answer: dict[str, Any]
    with contextlib.redirect_stdout(sys.stderr):
        try:
            names = [(model, data, clusterer) for model, data, clusterer in asked["names"]]
            answer = {"facts": facts(load_plugins(tuple(asked["plugins"])), names)}
        except Exception as error:
            answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
