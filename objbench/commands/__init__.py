"""One module a command; none imports torch, pandas or matplotlib before it runs."""

from objbench.commands.catalog import info, list_, plugins

COMMANDS = [list_, info, plugins]
