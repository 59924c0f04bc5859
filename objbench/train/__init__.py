"""Trains detectors. All code here can change a figure, so all of it is part of a training's key."""
