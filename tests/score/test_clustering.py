"""What clusterers are given, and what is made of their answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import toy_plugin
from objbench.clusterer import Cut, Objects, ObjectShape, cut_fault
from objbench.detector import Detections
from objbench.guarded import PluginFailed
from objbench.options import build
from objbench.scenes import Scenes, Split
from objbench.score import clustering
from objbench.score.random_state import rng_states

COUNT = 70
"""Scenes: more than two batches, and not a multiple of them."""


class Counting(toy_plugin.Squares):  # type: ignore[misc]
    """Counts the batches of scenes that it makes."""

    def __init__(self) -> None:
        super().__init__(toy_plugin.SquaresConfig(), 0)
        self.made = 0

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        self.made += 1
        return super().scenes(split, indices)


def true_objects(**changes: Any) -> tuple[clustering.Found, Counting]:
    """The true objects of the toy scenes as detections."""
    source = Counting()
    truth = source.scenes("test", torch.arange(COUNT)).truth
    scores = torch.linspace(0.1, 1, len(truth.image))
    found = replace(Detections(COUNT, truth.image, truth.boxes, scores), **changes)
    source.made = 0
    return clustering.Found(source, "test", found, truth), source


def config(**options: Any) -> Any:
    return build(toy_plugin.Shades.Config, "shades", options)


def fit(objects: Objects, seed: int = 0, **options: Any) -> Any:
    return clustering.fit("shades", toy_plugin.Shades, config(**options), objects, seed)


def objects(**changes: Any) -> Objects:
    return true_objects(**changes)[0].objects(toy_plugin.Shades, config())


# What they are given


def test_glimpses_are_what_the_boxes_hold() -> None:
    found, _ = true_objects()
    labels = found.truth.labels
    glimpses = found.glimpses(Cut(4))
    assert glimpses.shape == (len(labels), 1, 4, 4)
    torch.testing.assert_close(glimpses, (0.7 + 0.3 * labels)[:, None, None, None].expand_as(glimpses))


def test_a_margin_shows_what_is_around_and_outside_the_image_is_black() -> None:
    images = torch.ones(2, 3, 10, 10)
    boxes = torch.tensor([[0.0, 0, 4, 4], [3.0, 3, 7, 7]])
    corner, middle = clustering.cut_out(images, torch.tensor([0, 1]), boxes, Cut(8, 1.0))
    assert (middle == 1).all()
    assert (corner[:, 2:, 2:] == 1).all()
    assert not corner[:, :2].any(), "above the image"
    assert not corner[:, :, :2].any(), "left of the image"


def test_the_square_has_the_longer_side_of_the_box() -> None:
    images = torch.zeros(1, 1, 12, 12)
    images[:, :, :, 4:8] = 1
    (glimpse,) = clustering.cut_out(images, torch.tensor([0]), torch.tensor([[4.0, 2, 8, 10]]), Cut(8))
    torch.testing.assert_close(
        glimpse[0].mean(0), torch.tensor([0.0, 0, 1, 1, 1, 1, 0, 0]), atol=1e-6, rtol=0
    )


def test_each_detection_keeps_its_glimpse_in_any_order() -> None:
    found, _ = true_objects()
    order = torch.randperm(len(found.detections.image), generator=torch.Generator().manual_seed(0))
    shuffled = clustering.Found(
        found.source,
        "test",
        replace(
            found.detections,
            image=found.detections.image[order],
            boxes=found.detections.boxes[order],
            scores=found.detections.scores[order],
        ),
    )
    assert torch.equal(shuffled.glimpses(Cut(5, 0.5)), found.glimpses(Cut(5, 0.5))[order])


def test_glimpses_are_cut_once_for_all_clusterers_that_ask_alike() -> None:
    found, source = true_objects()
    first = found.objects(toy_plugin.Shades, config())
    assert source.made == 3, "70 scenes in batches of 32"
    second = found.objects(toy_plugin.Shades, config(clusters=3))
    assert source.made == 3
    first.glimpses.zero_()
    assert second.glimpses.any(), "each is given a copy"
    found.objects(toy_plugin.Shades, config(glimpse=7))
    assert source.made == 6


def test_labels_are_of_the_object_that_a_detection_is_on() -> None:
    found, _ = true_objects()
    assert torch.equal(found.labels, found.truth.labels)
    away = clustering.Found(
        found.source, "test", replace(found.detections, boxes=found.detections.boxes + 3), found.truth
    )
    assert (away.labels == -1).any(), "a quarter of the box is no match"
    assert found.objects(toy_plugin.ShadesByLabel, config(), with_labels=True).labels is not None
    assert found.objects(toy_plugin.ShadesByLabel, config()).labels is None


def test_only_what_the_detector_stands_by_is_fitted_on() -> None:
    found, _ = true_objects()
    what = torch.randn(len(found.detections.image), 3)
    masks = torch.randint(1, 256, (len(what), 4, 1), dtype=torch.uint8)
    kept = clustering.present(replace(found.detections, what=what, clusters=found.truth.labels, masks=masks))
    assert (kept.scores >= 0.5).all()
    assert len(kept.scores) == int((found.detections.scores >= 0.5).sum())
    assert kept.what is not None
    assert torch.equal(kept.what, what[found.detections.scores >= 0.5])
    assert kept.masks is not None
    assert torch.equal(kept.masks, masks[found.detections.scores >= 0.5])


def test_without_detections_there_are_no_glimpses() -> None:
    source = Counting()
    nothing = Detections(COUNT, torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0))
    found = clustering.Found(source, "test", nothing)
    assert found.glimpses(Cut(4)).shape == (0, 1, 4, 4)
    assert found.glimpses(None).shape == (0, 1, 0, 0)


@pytest.mark.parametrize("cut", [Cut(0), Cut(4, -1), Cut(4, float("nan")), Cut(2.5), 16])
def test_a_cut_that_cannot_be_made_is_a_fault(cut: Any) -> None:
    assert cut_fault(cut)
    assert not cut_fault(Cut(1, -0.5))
    assert not cut_fault(None)


# What is made of their answers


@pytest.mark.parametrize("field", ["glimpses", "scores", "what"])
def test_nan_is_refused_before_a_clusterer_sees_it(field: str) -> None:
    given = replace(objects(), what=torch.zeros(len(objects()), 2))
    made, _ = fit(replace(given, what=None))
    getattr(given, field).view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match=r"of 1 of \d+ objects are NaN or infinite"):
        fit(given)
    with pytest.raises(ValueError, match="NaN or infinite"):
        clustering.assign("shades", made, given, 10)


@pytest.mark.parametrize(
    ("trouble", "error", "says"),
    [
        ("raise", PluginFailed, "'shades' failed in its fit: RuntimeError: the shades broke"),
        ("sys.exit", PluginFailed, "'shades' failed in its fit: it called sys.exit"),
        ("change", ValueError, "fit of 'shades' changed the glimpses that it was given"),
        ("refuse", PluginFailed, "'shades' failed in its constructor: ValueError: it does not like"),
    ],
)
def test_a_fit_that_goes_wrong_is_one_line(trouble: str, error: type[Exception], says: str) -> None:
    before = rng_states()["torch"]
    with pytest.raises(error, match=says.replace("(", r"\(")):
        fit(objects(), trouble=trouble)
    assert torch.equal(rng_states()["torch"], before)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("many", r"are in a cluster such as 1\d; it must be in 0..9, or -1"),
        ("negative", "are in a cluster such as -2; it must be in 0..9"),
        ("short", r"a tensor of shape \[\d+\] for \d+ objects"),
        ("float", "clusters of type float32, not int64"),
        ("list", "list, not a tensor"),
        ("paint", "assign of 'shades' changed the scores"),
    ],
)
def test_a_wrong_answer_is_one_line(trouble: str, says: str) -> None:
    made, _ = fit(objects(), trouble=trouble)
    with pytest.raises(ValueError, match=says) as raised:
        clustering.assign("shades", made, objects(), 10)
    assert "\n" not in str(raised.value)


def test_noise_is_a_valid_answer() -> None:
    made, _ = fit(objects(), noise=0.5)
    clusters = clustering.assign("shades", made, objects(), 10)
    assert torch.equal(clusters == -1, objects().scores < 0.5)


def test_generators_and_threads_are_left_as_they_were() -> None:
    before, threads = rng_states()["torch"], torch.get_num_threads()
    made, _ = fit(objects(), trouble="generators")
    clustering.assign("shades", made, objects(), 10)
    assert torch.equal(rng_states()["torch"], before)
    assert torch.get_num_threads() == threads


def test_the_seed_is_the_cells() -> None:
    highs = [fit(objects(), seed)[0].high for seed in (0, 0, 1)]
    assert highs[0] == highs[1] != highs[2]


def test_a_restored_clusterer_assigns_alike() -> None:
    made, _ = fit(objects())
    state = clustering.state_of("shades", made)
    again = clustering.restored("shades", toy_plugin.Shades, config(), ObjectShape(1, 4, 0), state)
    clusters = clustering.assign("shades", made, objects(), 10)
    assert torch.equal(clustering.assign("shades", again, objects(), 10), clusters)
    assert set(clusters.tolist()) == {0, 9}


def test_a_state_that_does_not_fit_is_one_line() -> None:
    made, _ = fit(objects(), trouble="grow")
    state = clustering.state_of("shades", made)
    with pytest.raises(ValueError, match="the saved state of 'shades' does not fit the plugin"):
        clustering.restored("shades", toy_plugin.Shades, config(), ObjectShape(1, 4, 0), state)


def test_many_objects_are_assigned_in_parts() -> None:
    given = objects()
    copies = Objects(given.glimpses.repeat(9, 1, 1, 1), given.scores.repeat(9))
    assert len(copies) > clustering.OBJECTS
    made, _ = fit(given)
    once = clustering.assign("shades", made, given, 10)
    assert torch.equal(clustering.assign("shades", made, copies, 10), once.repeat(9))
