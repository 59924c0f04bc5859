"""Connected components of ink."""

import pytest
import torch

from objbench.detector import PRESENT, blind, trains_by_steps
from objbench.options import build
from objbench.scenes import GroundTruth, Scenes, SceneShape
from objbench_plugins.blobs.model import Blobs


def blobs(channels=1, **options):
    return Blobs(build(Blobs.Config, "blobs", options), SceneShape(channels, 20, 24))


def scene(channels=1, behind=0.0):
    """A bar of 2x6 and a diagonal of 5; a dot of one pixel; two images, one empty."""
    images = torch.full((2, channels, 20, 24), behind)
    images[1, :, 2:4, 3:9] = 1 - behind
    for i in range(5):
        images[1, :, 10 + i, 12 + i] = 1 - behind
    images[1, :, 18, 2] = 1 - behind
    return images


def fitted(images, **options):
    model = blobs(images.shape[1], **options)
    model.fit(
        blind(
            Scenes(images, GroundTruth.of([torch.zeros(0, 4)] * len(images), [torch.zeros(0)] * len(images)))
        )
    )
    return model.eval()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("behind", [0.0, 0.7, 1.0])
def test_each_component_is_a_detection_the_larger_first(channels, behind):
    images = scene(channels, behind)
    found = fitted(images).detect(images)
    assert not found.fault()
    assert found.boxes.tolist() == [
        [3, 2, 9, 4],
        [12, 10, 17, 15],
    ]  # a diagonal is connected; a dot is too small
    assert found.image.tolist() == [1, 1]
    assert found.scores[0] > found.scores[1] >= PRESENT
    assert found.what.shape == (2, channels * 64)
    assert not trains_by_steps(Blobs)


def test_the_background_is_in_its_state_and_can_be_black():
    images = scene(behind=0.7)
    model = blobs()
    model.load_state_dict(fitted(images).state_dict())
    assert len(model.detect(images).scores) == 2
    assert fitted(images, background="black").detect(images).boxes.tolist()[0] == [0, 0, 24, 20]


def test_an_image_is_looked_at_alone_and_none_is_no_error():
    images = torch.cat([scene(), scene().flip(3)])
    model = fitted(images)
    whole = model.detect(images)
    assert torch.equal(model.detect(images[1:2]).boxes, whole.boxes[whole.image == 1])
    assert len(model.detect(images[:0]).scores) == 0
    assert model.detect(images[:1]).what.shape == (0, 64)


def test_limits_are_kept():
    images = scene()
    assert len(fitted(images, pixels=1).detect(images).scores) == 3
    assert len(fitted(images, pixels=6).detect(images).scores) == 1
    assert fitted(images, pixels=1, most=2).detect(images).boxes.tolist()[0] == [3, 2, 9, 4]
    faint = images * 0.19
    assert len(fitted(faint).detect(faint).scores) == 0
    assert len(fitted(faint, ink=0.1).detect(faint).scores) == 2
