"""Masks of segments, as packed bits, and detections made of masks.

A mask says which pixels belong to one object or one detection. Masks are kept eight pixels a byte, so that those of a
whole test set are small: `[m, height, ceil(width / 8)]` uint8. In a byte, the leftmost pixel is the highest bit, as in
`numpy.packbits`; the bits past the last column are 0.

`Detections.masks` holds the segments of a detector, `GroundTruth.masks` those of the true objects; both are optional.
"""

from __future__ import annotations

import torch
from torch import Tensor

from objbench.detector import MIN_SCORE, Detections

_BITS = (128, 64, 32, 16, 8, 4, 2, 1)


def pack(pixels: Tensor) -> Tensor:
    """Packs masks [..., height, width] bool into [..., height, ceil(width / 8)] uint8."""
    padded = torch.nn.functional.pad(pixels, (0, -pixels.shape[-1] % 8))
    bits = torch.tensor(_BITS, dtype=torch.uint8, device=pixels.device)
    in_bytes = padded.reshape(*pixels.shape[:-1], -(-pixels.shape[-1] // 8), 8)
    return (in_bytes * bits).sum(-1, dtype=torch.uint8)


def unpack(masks: Tensor, width: int | None = None) -> Tensor:
    """The pixels [..., height, width] bool of packed masks.

    width: of the images; without it the width is a multiple of 8, and the last columns may be padding, which is False.
    """
    bits = torch.tensor(_BITS, dtype=torch.uint8, device=masks.device)
    return ((masks[..., None] & bits) != 0).flatten(-2)[..., :width]


def boxes_of(masks: Tensor) -> Tensor:
    """The smallest box around each packed mask, [m, 4] float32 xyxy; 0, 0, 0, 0 for a mask without pixels."""
    pixels = unpack(masks)
    sides = []
    for axis in (-2, -1):  # which columns, then which rows, have a pixel
        used = pixels.any(axis)
        places = torch.arange(used.shape[-1], device=masks.device)
        end = torch.where(used, places + 1, 0).amax(-1)
        sides.append((torch.where(used, places, used.shape[-1]).amin(-1).minimum(end), end))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], -1).float()


def mask_fault(masks: Tensor, height: int, width: int) -> str:
    """What is wrong with packed masks [m, ...] of images of this size, in a few words; "" when nothing is."""
    expected = [len(masks), height, -(-width // 8)]
    if list(masks.shape) != expected:
        return f"masks of shape {list(masks.shape)}, not {expected} (eight pixels a byte)"
    if masks.dtype != torch.uint8:
        return f"masks of type {str(masks.dtype).removeprefix('torch.')}, not uint8"
    if width % 8 and (masks[..., -1] & (2 ** (-width % 8) - 1)).any():
        return f"masks with pixels to the right of column {width - 1}"
    if count := int((~(masks != 0).flatten(1).any(1)).sum()):
        return f"{count} of {len(masks)} masks have no pixels"
    return ""


def from_masks(
    masks: Tensor,
    scores: Tensor,
    clusters: Tensor | None = None,
    what: Tensor | None = None,
    min_score: float = MIN_SCORE,
) -> Detections:
    """Makes detections from k masks an image; their boxes follow from the masks.

    masks: [n, k, height, width] bool. scores: [n, k] in 0..1. clusters: [n, k] integers, or None. what: [n, k, A], or
    None. Leaves out masks without pixels and scores below `min_score`. Detections are ordered by image, then by mask.
    """
    image, slot = torch.nonzero((scores >= min_score) & masks.flatten(2).any(2), as_tuple=True)
    packed = pack(masks[image, slot])
    return Detections(
        images=len(masks),
        image=image,
        boxes=boxes_of(packed),
        scores=scores[image, slot].float(),
        clusters=None if clusters is None else clusters[image, slot].long(),
        what=None if what is None else what[image, slot].float(),
        masks=packed,
    )
