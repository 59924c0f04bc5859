"""`python -m objbench` is `objbench`."""

from objbench.cli import main

main()
