"""Facts about cells: identity, matrix, plan, store. Nothing here imports torch."""
