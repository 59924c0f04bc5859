"""Raises when it is imported."""

raise RuntimeError("the plugin broke\nover two lines")
