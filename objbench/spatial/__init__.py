"""Operations for detectors with spatial attention: boxes, and glimpses cropped from images or painted on canvases.

A box is `xyxy` in pixels (see `objbench.scenes`). A glimpse is a small square picture of the content of a box.
Boxes are never rotated, so bilinear resampling is separable, which makes it fast. Everything here is differentiable
in pixels and boxes, runs on CPU and GPU, and equals a plain `grid_sample` version (`objbench.spatial.reference`) up
to rounding.
"""

from objbench.spatial.boxes import boxes_around, clamp_boxes, trim_boxes, vector
from objbench.spatial.cells import candidate_cells, take_cells, top_cells
from objbench.spatial.glimpses import Painter, canvases, crop, overlap, paint
from objbench.spatial.parts import in_parts

__all__ = [
    "Painter",
    "boxes_around",
    "candidate_cells",
    "canvases",
    "clamp_boxes",
    "crop",
    "in_parts",
    "overlap",
    "paint",
    "take_cells",
    "top_cells",
    "trim_boxes",
    "vector",
]
