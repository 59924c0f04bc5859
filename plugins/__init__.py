"""First-party plugins of objbench; each registers through the same entry points as anybody's."""
