"""Starts and watches processes. Nothing here changes a figure, and none of it is part of a key."""
