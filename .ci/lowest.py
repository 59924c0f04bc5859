"""Prints the lowest version of every dependency in pyproject.toml, as constraints for pip."""

import itertools
import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in sorted(
    {*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())}
):
    if found := re.fullmatch(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", requirement):
        print(f"{found[1]}=={found[2]}")
