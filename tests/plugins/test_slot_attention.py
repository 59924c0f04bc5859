"""Slot Attention: against a plain reference, its rates, its segments, its kit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from objbench.errors import UsageError
from objbench.masks import unpack
from objbench.options import build
from objbench.scenes import SceneShape
from objbench_plugins.slot_attention.attention import SlotAttention, far_apart
from objbench_plugins.slot_attention.model import Seen, SlotAttentionDetector, at_border, scaled
from objbench_plugins.slot_attention.networks import (
    SMALLEST,
    Decoder,
    Encoder,
    Frame,
    Position,
    frame_of,
    started,
)
from objbench_plugins.slot_attention.rates import WarmedAdam, rate_at
from objbench_plugins.slot_attention.reference import slots_of


def detector(shape: tuple[int, int, int] = (3, 32, 32), **options: Any) -> SlotAttentionDetector:
    torch.manual_seed(0)
    settings = SlotAttentionDetector.settings("demo", "sprites-sim")
    return SlotAttentionDetector(
        build(SlotAttentionDetector.Config, "slot-attention", settings, options), SceneShape(*shape)
    )


@pytest.mark.parametrize(("iterations", "seeds"), [(1, "noise"), (3, "noise"), (2, "far")])
def test_slots_are_those_of_the_plain_reference(iterations: int, seeds: str) -> None:
    torch.manual_seed(0)
    module = SlotAttention(6, 5, 7, iterations, seeds).double()
    for parameter in module.parameters():  # also norms and biases
        torch.nn.init.normal_(parameter, 0.3, 0.5)
    features, noise = torch.randn(2, 11, 6).double(), torch.randn(2, 3, 5).double()
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    for one, (these, random) in zip(
        module(features, noise)[0], zip(features, noise, strict=True), strict=True
    ):
        expected = slots_of(these.numpy(), random.numpy(), weights, iterations, seeds)
        assert np.allclose(one.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_seeds_are_far_from_each_other() -> None:
    """Four groups of features, of which the first is much the largest: each has one seed."""
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 7.0], [5.0, 5.0]])
    group = torch.tensor([0] * 20 + [3, 1, 1, 2, 3])
    features = centres[group][None] + 0.1 * torch.rand(1, 25, 2)
    chosen = far_apart(features, 4)[0]
    assert chosen[0] == 0
    assert sorted(group[chosen].tolist()) == [0, 1, 2, 3]
    assert group[chosen][1] == 1  # the farthest from the first


def test_slots_do_not_depend_on_the_order_of_features_and_follow_that_of_noise() -> None:
    torch.manual_seed(0)
    module = SlotAttention(6, 5, 7, 3).double()
    features, noise = torch.randn(2, 11, 6).double(), torch.randn(2, 3, 5).double()
    slots, _ = module(features, noise)
    assert torch.allclose(module(features[:, torch.randperm(11)], noise)[0], slots)
    assert torch.allclose(module(features, noise[:, [2, 0, 1]])[0], slots[:, [2, 0, 1]])


def test_the_paper_is_the_default() -> None:
    assert SlotAttentionDetector.settings("paper", "anything") == {}
    c = SlotAttentionDetector.Config()
    assert (c.steps, c.batch_size, c.lr, c.warmup, c.half_life) == (500_000, 64, 4e-4, 10_000, 100_000)
    assert (c.slots, c.iterations, c.slot_size, c.hidden, c.width) == (7, 3, 64, 128, 64)
    encoder, decoder = Encoder(3, (128, 128), 64, 0), Decoder(64, 3, (128, 128), 64, c.grid, c.coarse, c.even)
    of_encoder = [(m.kernel_size, m.stride) for m in encoder.convolutions if isinstance(m, torch.nn.Conv2d)]
    assert of_encoder == [((5, 5), (1, 1))] * 4
    layers = [m for m in decoder.layers if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [(m.kernel_size[0], m.stride[0]) for m in layers] == [(5, 2)] * 4 + [(5, 1), (3, 1)]
    assert decoder.layers(torch.zeros(1, 64, 8, 8)).shape == (1, 4, 128, 128)  # nothing is resized


def test_positions_are_the_distances_to_the_sides() -> None:
    grid = Position(2, (3, 5)).grid
    assert grid.shape == (3, 5, 4)
    assert grid[0, 0].tolist() == [0, 0, 1, 1]
    assert grid[2, 4].tolist() == [1, 1, 0, 0]
    assert grid[1, 1].tolist() == [0.5, 0.25, 0.5, 0.75]


def test_a_frame_is_the_centre_and_the_deviation_of_a_slots_pixels() -> None:
    grid = Position(2, (5, 9)).grid[..., :2].flatten(0, 1).double()
    weights = torch.rand(2, 45, 3).double()
    weights[0, :, 0] = 0
    weights[0, 13, 0] = 1  # one pixel: row 1, column 4
    weights = weights / weights.sum(1, keepdim=True)
    frame = frame_of(weights, grid)
    assert frame.centre[0, 0].tolist() == [0.25, 0.5]
    assert frame.extent[0, 0].tolist() == [SMALLEST, SMALLEST]
    for image, slot in ((0, 1), (1, 2)):
        mean = np.average(grid.numpy(), axis=0, weights=weights[image, :, slot].numpy())
        variance = np.average((grid.numpy() - mean) ** 2, axis=0, weights=weights[image, :, slot].numpy())
        assert np.allclose(frame.centre[image, slot], mean)
        assert np.allclose(frame.extent[image, slot], np.sqrt(variance))


def test_what_a_slot_paints_moves_and_grows_with_its_frame() -> None:
    """Where the grid's positions are the same share of the frame, positions are the same."""
    torch.manual_seed(0)
    position = Position(3, (9, 9))
    nothing = torch.zeros(3, 3, 9, 9)
    centre = torch.tensor([[0.5, 0.5], [0.25, 0.5], [0.5, 0.5]])
    extent = torch.tensor([[0.125, 0.25], [0.125, 0.25], [0.25, 0.25]])
    placed = position(nothing, Frame(centre, extent))
    torch.testing.assert_close(placed[0, :, 4:7], placed[1, :, 2:5])  # a quarter of the image up is two rows
    torch.testing.assert_close(placed[0, :, 4:7:1], placed[2, :, 4:9:2])  # twice as high
    assert not torch.allclose(placed[0], placed[1])


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 35, 35), (3, 24, 40)])
def test_masks_share_out_each_pixel_and_mix_the_picture(shape: tuple[int, int, int]) -> None:
    model = detector(shape)
    images = torch.rand(2, *shape)
    seen = model.see(images, torch.randn(2, 8, 24))
    assert seen.masks.shape == (2, 8, *shape[1:])
    assert torch.allclose(seen.masks.sum(1), torch.ones(2, *shape[1:]))
    plain = sum(seen.masks[:, k, None] * seen.colours[:, k] for k in range(8))
    assert torch.allclose(seen.picture, plain, atol=1e-5)
    torch.manual_seed(1)
    loss = model.training_step(images, 0)["image"]
    torch.manual_seed(1)
    picture = model.see(images, torch.randn(2, 8, 24)).picture
    assert torch.allclose(loss, ((picture - (2 * images - 1)) ** 2).mean())
    assert model.reconstruct(images).shape == images.shape


def test_segments_are_where_a_mask_is_largest_and_the_one_at_the_border_is_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = torch.full((1, 3, 4, 5), 0.2)
    masks[:, 0] = 0.6  # the background
    masks[:, 1, 1:3, 1:4] = 0.8  # wins in six pixels
    masks = masks / masks.sum(1, keepdim=True)
    seen = Seen(torch.arange(6.0).view(1, 3, 2), torch.zeros(1, 3, 3, 4, 5), masks, masks)
    for background, boxes in (("border", [[1, 1, 4, 3]]), ("kept", [[0, 0, 5, 4], [1, 1, 4, 3]])):
        model = detector((3, 4, 5), background=background, grid=4, segments="decoder")
        monkeypatch.setattr(model, "see", lambda images, noise: seen)
        found = model.eval().detect(torch.zeros(1, 3, 4, 5))
        assert found.boxes.tolist() == boxes
        assert found.masks is not None
        assert found.what is not None
        assert unpack(found.masks, 5)[-1].sum() == 6
        assert found.scores[-1] == pytest.approx(0.5 + 0.25)  # its mean mask is a half
        assert found.what[-1].tolist() == [2, 3]


def test_segments_of_attention_are_where_it_is_largest_once_it_is_as_large_as_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attention = torch.full((1, 2, 3, 4), 0.1)
    attention[:, 1, 1:, 2:] = 0.9  # its lower right part, which reaches the border less
    attention[:, 0] = 1 - attention[:, 1]
    model = detector((3, 12, 16), grid=4)
    seen = Seen(
        torch.zeros(1, 2, 2), torch.zeros(1, 2, 3, 12, 16), torch.full((1, 2, 12, 16), 0.5), attention
    )
    monkeypatch.setattr(model, "see", lambda images, noise: seen)
    assert model.eval().detect(torch.zeros(1, 3, 12, 16)).boxes.tolist() == [[8, 4, 16, 12]]


def test_attention_shares_out_each_feature() -> None:
    seen = detector((3, 24, 40)).see(torch.rand(2, 3, 24, 40), torch.randn(2, 8, 24))
    assert seen.attention.shape == (2, 8, 12, 20)
    assert torch.allclose(seen.attention.sum(1), torch.ones(2, 12, 20), atol=1e-5)


def test_at_border_counts_corners_twice() -> None:
    assert at_border(torch.ones(1, 1, 3, 4).bool()).item() == 14


def test_k_means_starts_with_the_colours_of_pixels_as_features() -> None:
    model = detector(halvings=0)
    images = torch.rand(1, 3, 32, 32)
    features = model.encoder.convolutions(scaled(images))
    expected = torch.cat([scaled(images).relu(), (-scaled(images)).relu()], 1)
    assert torch.allclose(features[:, :6], expected, atol=1e-5)


def test_attention_that_starts_as_k_means_finds_colours() -> None:
    """Two regions of features: each slot is in one of them, and has its mean."""
    torch.manual_seed(0)
    module = SlotAttention(8, 8, 16, 5)
    started(module)
    module.start_as_k_means(20.0)
    places = torch.eye(8)[[0] * 6 + [1] * 10]
    slots = module(places[None], torch.randn(1, 2, 8))[0][0]
    normed = torch.nn.functional.layer_norm(torch.eye(8)[:2], (8,), eps=1e-3)
    near = torch.nn.functional.cosine_similarity(slots[:, None], torch.tanh(normed)[None], dim=2)
    assert near.max() > 0.9


def test_rates_rise_then_halve_and_are_kept_with_the_optimiser() -> None:
    assert rate_at(5, 10, 100) == pytest.approx(0.5 * 0.5**0.05)
    assert rate_at(200, 10, 100) == pytest.approx(0.25)
    weight = torch.nn.Parameter(torch.ones(1))

    def steps(optimizer: WarmedAdam, count: int) -> None:
        for _ in range(count):
            weight.grad = torch.ones(1)
            optimizer.step()

    first = WarmedAdam([weight], lr=0.1, warmup=10, half_life=100)
    steps(first, 4)
    assert first.param_groups[0]["lr"] == pytest.approx(0.1 * rate_at(4, 10, 100))
    resumed = WarmedAdam([weight], lr=0.1, warmup=10, half_life=100)
    resumed.load_state_dict(first.state_dict())
    steps(resumed, 1)
    assert resumed.param_groups[0]["lr"] == pytest.approx(0.1 * rate_at(5, 10, 100))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr_end": 0.1}, "lr_end must be 1"), ({"slot_size": 16}, "needs width=24 equal to slot_size=16")],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detector(**options)
