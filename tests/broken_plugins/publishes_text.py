"""Returns from the hook of published figures what is none."""

from objbench import hookimpl


@hookimpl
def objbench_published():
    return ["97 %"]
