"""Asks for a hook that does not exist."""

from objbench import hookimpl


@hookimpl
def objbench_modles():
    return []
