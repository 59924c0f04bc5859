"""`objbench report --html`: the whole benchmark as one page that needs nothing else."""
