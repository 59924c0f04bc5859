"""`python -m objbench` is `objbench`."""

from objbench.commands import main

main()
