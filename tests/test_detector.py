"""What detectors return."""

from __future__ import annotations

import torch

from objbench.detector import Detections


def test_from_padded_drops_low_scores_and_boxes_that_clamping_left_without_size() -> None:
    outside = torch.tensor([70.0, 10.0, 80.0, 20.0])
    boxes = torch.stack([torch.tensor([1.0, 2.0, 3.0, 4.0]), outside, -outside.roll(2), outside])[None]
    boxes = torch.cat([boxes, boxes.flip(1)]).clamp(0, 64)
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.001]])
    clusters = torch.arange(8).view(2, 4)
    found = Detections.from_padded(boxes, scores, clusters, what=clusters[..., None].float())
    assert found.images == 2
    assert found.image.tolist() == [0]
    assert found.boxes.tolist() == [[1, 2, 3, 4]]
    assert (found.clusters.tolist(), found.what.tolist()) == ([0], [[0.0]])


def test_from_padded_keeps_what_is_a_mistake() -> None:
    boxes = torch.tensor([[[5.0, 5.0, 3.0, 9.0], [float("nan"), 0.0, 1.0, 1.0], [4.0, 4.0, 4.0, 9.0]]])
    found = Detections.from_padded(boxes, torch.ones(1, 3))
    assert found.boxes[0].tolist() == [5, 5, 3, 9]
    assert len(found.boxes) == 2
    assert found.boxes[1, 0].isnan()
