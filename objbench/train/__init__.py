"""Makes weights: everything here can change a figure, so all of it is part of a training's key."""
