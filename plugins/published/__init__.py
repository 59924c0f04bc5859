"""Figures from the paper, printed beside ours by `report --paper`."""
