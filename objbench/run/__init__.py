"""Starts and monitors processes. Nothing here can change a figure, so nothing here is part of a key."""
