"""`objbench.masks`: packed bits, boxes that follow from masks, and detections made of masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from objbench.detector import Detections
from objbench.masks import boxes_of, from_masks, mask_fault, pack, unpack
from objbench.scenes import GroundTruth
from objbench.score.arrays import flat, load_detections, load_truth, save_tensors, select_scenes


@pytest.mark.parametrize("width", [1, 7, 8, 9, 35, 64])
def test_packing_is_that_of_numpy_and_comes_back(width: int) -> None:
    pixels = torch.rand(3, 5, width, generator=torch.Generator().manual_seed(width)) < 0.5
    packed = pack(pixels)
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), np.packbits(pixels.numpy(), axis=-1))
    assert torch.equal(unpack(packed, width), pixels)
    assert unpack(packed).shape[-1] % 8 == 0


def test_boxes_are_the_smallest_around_the_pixels() -> None:
    pixels = torch.zeros(4, 6, 11, dtype=torch.bool)
    pixels[0, 2, 3] = True  # one pixel
    pixels[1, 1:4, 5:11] = True
    pixels[2, 0, 0] = pixels[2, 5, 10] = True  # two corners
    assert boxes_of(pack(pixels)).tolist() == [[3, 2, 4, 3], [5, 1, 11, 4], [0, 0, 11, 6], [0, 0, 0, 0]]
    assert boxes_of(pack(pixels[:0])).shape == (0, 4)


def test_detections_of_masks_leave_out_empty_masks_and_low_scores() -> None:
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    masks[0, 0, 1, 1:3] = masks[0, 1, 0, 0] = masks[1, 2, 3, 3] = True
    scores = torch.tensor([[0.9, 0.001, 0.8], [0.7, 0.6, 0.5]])
    found = from_masks(masks, scores, what=torch.arange(6.0).view(2, 3, 1))
    assert found.image.tolist() == [0, 1]
    assert found.boxes.tolist() == [[1, 1, 3, 2], [3, 3, 4, 4]]
    assert found.scores.tolist() == [pytest.approx(0.9), 0.5]
    assert found.what is not None
    assert found.what.tolist() == [[0], [5]]
    assert found.masks is not None
    assert torch.equal(unpack(found.masks, 4), torch.stack([masks[0, 0], masks[1, 2]]))
    assert found.fault() == ""


def test_masks_stay_with_their_detections_and_objects() -> None:
    masks = torch.eye(8, dtype=torch.bool)[:, None]  # [8, 1, 8]
    parts = [from_masks(masks[None, i : i + 4], torch.ones(1, 4)) for i in (0, 4)]
    joined = Detections.concatenate(parts)
    assert joined.masks is not None
    assert torch.equal(unpack(joined.masks), masks)
    without = Detections(1, torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0))
    assert Detections.concatenate([parts[0], without]).masks is None
    truth = GroundTruth.of([p.boxes for p in parts], [torch.zeros(4)] * 2, [pack(masks[:4]), pack(masks[4:])])
    twice = GroundTruth.concatenate([truth, truth])
    assert twice.masks is not None
    assert torch.equal(twice.masks, pack(masks).repeat(2, 1, 1))


def test_masks_that_are_wrong_are_reported() -> None:
    found = from_masks(torch.ones(1, 2, 3, 3).bool(), torch.ones(1, 2))
    empty = Detections(
        1, found.image, found.boxes, found.scores, masks=torch.zeros(2, 3, 1, dtype=torch.uint8)
    )
    assert empty.fault() == "2 of 2 detections have a mask without pixels"
    with pytest.raises(ValueError, match="need masks of shape"):
        Detections(1, found.image, found.boxes, found.scores, masks=torch.zeros(3, 3, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="2 objects need masks"):
        GroundTruth(1, found.image, found.boxes, found.image, torch.zeros(1, 3, 1, dtype=torch.uint8))


def test_a_mask_fault_says_what_is_wrong() -> None:
    right = pack(torch.ones(2, 4, 11).bool())
    assert mask_fault(right, 4, 11) == ""
    assert mask_fault(right, 4, 8) == "masks of shape [2, 4, 2], not [2, 4, 1] (eight pixels a byte)"
    assert mask_fault(right.int(), 4, 11) == "masks of type int32, not uint8"
    assert mask_fault(right, 4, 10) == "masks with pixels to the right of column 9"
    assert mask_fault(right * 0, 4, 11) == "2 of 2 masks have no pixels"


def test_masks_are_kept_with_detections_and_truth(tmp_path: Path) -> None:
    masks = torch.eye(9, dtype=torch.bool)[:, None]  # [9, 1, 9]
    found = from_masks(masks[None], torch.ones(1, 9))
    truth = GroundTruth.of([found.boxes], [torch.zeros(9)], [pack(masks)])
    cell = tmp_path / "cell"
    save_tensors(tmp_path / "detections.safetensors", flat(found))
    save_tensors(tmp_path / "truth.safetensors", flat(truth))
    for loaded in (load_detections(cell), load_truth(cell)):
        assert loaded.masks is not None
        assert torch.equal(unpack(loaded.masks, 9), masks)
    twice = select_scenes(found, truth, torch.tensor([0, 0]))
    assert all(part.masks is not None and len(part.masks) == 18 for part in twice)
