"""The floor: principal components of true boxes."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from objbench.detector import blind, trains_by_steps
from objbench.errors import UsageError
from objbench.options import build
from objbench.scenes import GroundTruth, Scenes, SceneShape
from objbench_plugins.floor.model import PcaOnTrueBoxes
from objbench_plugins.floor.truth import Truth


def some_scenes(n=30, channels=1):
    gen = torch.Generator().manual_seed(0)
    boxes, labels = [], []
    for i in range(n):
        corner = torch.rand(i % 4, 2, generator=gen) * 20
        size = 4 + torch.rand(i % 4, 2, generator=gen) * 8
        boxes.append(torch.cat([corner, corner + size], 1))
        labels.append(torch.zeros(i % 4))
    return Scenes(torch.rand(n, channels, 32, 32, generator=gen), GroundTruth.of(boxes, labels))


def floor(channels=1, **options):
    config = build(PcaOnTrueBoxes.Config, "pca-gmm", {"glimpse": 6, "components": 5}, options)
    return PcaOnTrueBoxes(config, SceneShape(channels, 32, 32))


@pytest.mark.parametrize("channels", [1, 3])
def test_it_gives_the_true_boxes_and_their_principal_components(channels):
    scenes, model = some_scenes(channels=channels), floor(channels)
    model.fit(scenes)
    restored = floor(channels)
    restored.load_state_dict(model.state_dict())
    found = restored.detect_scenes(scenes)
    assert torch.equal(found.boxes, scenes.truth.boxes)
    assert torch.equal(found.image, scenes.truth.image)
    assert (found.scores == 1).all()
    assert found.clusters is None
    glimpses = model.glimpses(scenes).numpy()
    expected = PCA(5, random_state=0).fit(glimpses).transform(glimpses)
    np.testing.assert_allclose(found.what.numpy(), expected, atol=1e-4)


def test_a_glimpse_is_what_the_box_holds():
    images = torch.rand(2, 1, 32, 32)
    truth = GroundTruth.of(
        [torch.zeros(0, 4), torch.tensor([[10.0, 4, 16, 10]])], [torch.zeros(0), torch.zeros(1)]
    )
    glimpse = floor().glimpses(Scenes(images, truth)).reshape(6, 6)
    torch.testing.assert_close(glimpse, images[1, 0, 4:10, 10:16])


def test_it_is_an_oracle_that_is_fitted_once():
    assert PcaOnTrueBoxes.oracle
    assert not trains_by_steps(PcaOnTrueBoxes)


def test_too_many_components_are_reported_in_a_line():
    with pytest.raises(UsageError, match=r"pca-gmm.components=37 is more than the 36 pixels"):
        floor(components=37)
    with pytest.raises(UsageError, match=r"0 objects to fit on, fewer than pca-gmm.components=5"):
        floor().fit(blind(some_scenes()))


def test_truth_gives_the_true_boxes_and_no_latents():
    scenes = some_scenes()
    model = Truth(build(Truth.Config, "truth"), SceneShape(1, 32, 32))
    model.fit(scenes)
    found = model.detect_scenes(scenes)
    assert Truth.oracle
    assert not trains_by_steps(Truth)
    assert torch.equal(found.boxes, scenes.truth.boxes)
    assert torch.equal(found.image, scenes.truth.image)
    assert (found.scores == 1).all()
    assert found.clusters is None
    assert found.what is None
    assert not found.fault()
    assert len(model.detect_scenes(blind(scenes)).scores) == 0
