def objbench_models(:
