"""SPAIR and SPACE under `paper`: sizes, settings and priors, each pinned to a number of the publication.

Numbers of SPAIR are those of e2crawfo/auto_yolo, branch aaai_2019, but A = 256 and anchor 72; those of SPACE are of
zhixuan-lin/SPACE, `3d_room_large.yaml` and `arch.py`, but A = 256. Both changes are of GMAIR's Appendix B.1.
"""

import dataclasses
import itertools
import math

import pytest
import torch

from objbench.options import build
from objbench.scenes import SceneShape
from objbench_plugins.space.model import Space
from objbench_plugins.space.networks import SubPixelConv
from objbench_plugins.spair.model import Spair

DATA = ("multimnist", "fruit2d", "fruit2d-sim")
A = 256


def paper(cls, name, data):
    return build(cls.Config, name, cls.settings("paper", data))


def conv(kernel, before, after):
    """Parameters of a convolution with a bias; with kernel 1, of a linear layer too."""
    return kernel**2 * before * after + after


def chain(*widths):
    """Parameters of linear layers of these widths."""
    return sum(conv(1, *pair) for pair in itertools.pairwise(widths))


def size(module):
    return sum(p.numel() for p in module.parameters())


# SPAIR


@pytest.mark.parametrize("data", DATA)
def test_spair_trains_as_the_original_on_all_data(data):
    c = paper(Spair, "spair", data)
    assert dataclasses.asdict(c) == dataclasses.asdict(Spair.Config())
    assert (c.steps, c.batch_size, c.lr, c.lr_end, c.clip_norm) == (300_000, 32, 1e-4, 1.0, 1.0)
    assert (c.what_dim, c.anchor, c.stride, c.glimpse, c.widths()) == (A, 72, 12, 14, (512, 256))
    assert (c.pixel_floor, c.recon, c.temperature, c.presence_kl) == (1e-9, 1, 1, "clean")
    assert (c.presence_bias, c.colour_bias, c.gate_cells, c.warmup_images) == (0, 0, 0, 0)


def test_spair_has_one_group_of_parameters_at_one_rate():
    model = Spair(Spair.Config(), SceneShape(1, 128, 128))
    (optimizer,) = model.optimizers()
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.Adam)
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0)
    assert len(group["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("step", "odds"),
    # 0.0125 + (1e6 - 0.0125) x 0.1^(step / 1,000)
    [(0, 1e6), (1_000, 1e5), (10_000, 0.0125 + 1e-4), (100_000, 0.0125)],
)
def test_spairs_priors_follow_the_published_schedule(step, odds):
    model = Spair(Spair.Config(), SceneShape(1, 128, 128))
    p = odds / (1 + odds)
    assert model.schedule(step)["log_p"] == pytest.approx(math.log(p), rel=1e-4)
    mean, std = model.where_prior
    torch.testing.assert_close(mean, torch.tensor([0, 0, math.log(0.1 / 0.9), math.log(0.1 / 0.9)]))
    assert std.tolist() == [1, 1, 0.5, 0.5]
    assert model.phase(step).where_frozen == (step < 1_000)


@pytest.mark.parametrize("channels", [1, 3])
def test_spair_has_the_layers_of_the_original(channels):
    """Backbone, three networks of two layers of 100, glimpse encoder and decoder, and the learned border."""
    model = Spair(Spair.Config(), SceneShape(channels, 128, 128))
    context = 4 * (4 + A + 1 + 1)  # of four neighbours: box, what, depth, presence
    backbone = (
        conv(4, channels, 128) + 2 * conv(4, 128, 128) + 3 * conv(1, 128, 128) + conv(1, 128, 100)
    )  # 4x4 of strides 3, 2, 2, then 1x1: the grid is 11x11
    # Every network reads 100 features of the backbone and the context; depth and presence network also read what the
    # network before them passes on, and the attributes so far. The first layers are parted by what they read.
    box = chain(100 + context, 100, 100, 8 + 100)
    depth = chain(100 + context + 100 + 4 + A, 100, 100, 2 + 100)
    presence = chain(100 + context + 100 + 4 + A + 1, 100, 100, 1)
    pixels = 14 * 14
    encoder = chain(channels * pixels, 512, 256, 2 * A)
    decoder = chain(A, 256, 512, (channels + 1) * pixels)
    border = 4 + A + 1 + 1
    assert (model.rows, model.columns) == (11, 11)
    assert size(model.backbone) == backbone
    assert size(model.what_encoder) == encoder
    assert size(model.decoder) == decoder
    assert size(model) == backbone + box + depth + presence + encoder + decoder + border
    assert size(model) == {1: 1_820_077, 3: 2_225_973}[channels]


# Demo and small


@pytest.mark.parametrize("protocol", ["demo", "small"])
@pytest.mark.parametrize(("cls", "name"), [(Spair, "spair"), (Space, "space")])
def test_both_fruit_data_have_the_same_settings_with_places_for_36_objects(cls, name, protocol):
    official, simulated = (cls.settings(protocol, data) for data in ("fruit2d", "fruit2d-sim"))
    assert official == simulated
    assert official["gate_cells"] == 36
    assert cls.settings(protocol, "multimnist")["gate_cells"] == 12


@pytest.mark.parametrize("protocol", ["demo", "small"])
@pytest.mark.parametrize("data", DATA)
def test_priors_of_size_follow_from_the_anchor_or_the_image_alone(protocol, data):
    spair = build(Spair.Config, "spair", Spair.settings(protocol, data))
    assert (spair.anchor, spair.size_prior, spair.size_prior_std) == (
        36,
        0.5,
        1,
    )  # N(0, 1) on logits, as GMAIR
    space = build(Space.Config, "space", Space.settings(protocol, data))
    assert space.scale_start == Space.Config().scale_start
    assert space.scale_end in (space.scale_start, Space.Config().scale_end)


# SPACE


@pytest.mark.parametrize("data", DATA)
def test_space_trains_as_published_on_all_data(data):
    c = paper(Space, "space", data)
    assert dataclasses.asdict(c) == dataclasses.asdict(Space.Config())
    assert (c.steps, c.batch_size, c.clip_norm, c.lr_end) == (160_000, 12, 1.0, 1.0)
    assert (c.fg_sigma, c.bg_sigma, c.components, c.glimpse, c.what_dim) == (0.15, 0.15, 5, 32, A)
    assert (c.fixed_alpha_until, c.boundary, c.boundary_width) == (0, 1, 6)
    assert (c.presence_bias, c.colour_bias, c.alpha_bias, c.start_at_prior) == (0, 0, 0, False)
    assert (c.gate_cells, c.warmup_images, c.precision) == (0, 0, "float32")


def test_space_has_rmsprop_for_the_foreground_and_adam_for_the_background():
    model = Space(Space.Config(), SceneShape(3, 128, 128))
    foreground, background = model.optimizers()
    assert isinstance(foreground, torch.optim.RMSprop)
    assert isinstance(background, torch.optim.Adam)
    (front,), (back,) = foreground.param_groups, background.param_groups
    assert (front["lr"], front["alpha"], front["eps"], front["momentum"]) == (1e-5, 0.99, 1e-8, 0)
    assert (back["lr"], back["betas"]) == (1e-3, (0.9, 0.999))
    assert {id(p) for p in back["params"]} == {id(p) for p in model.background.parameters()}
    assert len(front["params"]) + len(back["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("step", "presence", "scale", "temperature", "boundary"),
    [
        (0, 0.1, -1.0, 2.5, True),
        (1_000, 0.1, -1.0, 2.4, True),
        (10_000, 0.01, -1.0, 1.5, True),
        (15_000, 0.01, -1.5, 1.0, True),
        (100_000, 0.01, -2.0, 0.5, False),  # published: still on at this step, off from the next
    ],
)
def test_spaces_priors_follow_the_published_schedule(step, presence, scale, temperature, boundary):
    model = Space(Space.Config(), SceneShape(3, 128, 128))
    now = model.schedule(step)
    assert math.exp(now["log_prior"]) == pytest.approx(presence)
    assert math.exp(now["log_absent"]) == pytest.approx(1 - presence)
    assert now["scale"] == pytest.approx(scale)
    assert now["temperature"] == pytest.approx(temperature)
    assert model.config.scale_std == 0.1
    assert tuple(model.phase(step)) == (False, False, False, boundary)


def normed(kernel, before, after):
    """A convolution, then group or batch normalisation."""
    return conv(kernel, before, after) + 2 * after


def up(before, after, factor):
    """A 1x1 convolution with pixel shuffle and a 3x3 convolution, both normalised."""
    return conv(1, before, after * factor**2) + 2 * after + normed(3, after, after)


def test_space_has_the_published_layers():
    """With the RGB images of the published code. At the published A = 32 they are 172,480 fewer: A is in two layers."""
    model = Space(Space.Config(), SceneShape(3, 128, 128))
    trunk = [(4, 3, 16), (4, 16, 32), (4, 32, 64), (3, 64, 128), (3, 128, 256), (1, 256, 128)]
    encoder = sum(normed(*layer) for layer in [*trunk, (3, 128, 128), (3, 128, 128), (3, 256, 128)])
    heads = conv(1, 128, 1 + 2 + 4 + 4)  # presence, depth, scale, shift
    what = [(3, 3, 16), (4, 16, 32), (3, 32, 32), (4, 32, 64), (4, 64, 128), (4, 128, 256)]
    what_encoder = sum(normed(*layer) for layer in what) + conv(1, 256, 2 * A)
    decoder = normed(1, A, 256) + sum(
        up(before, after, 2) for before, after in [(256, 128), (128, 128), (128, 64), (64, 32), (32, 16)]
    )
    decoder += conv(3, 16, 3) + conv(3, 16, 1)

    flat = 64 * 8 * 8
    image = normed(3, 3, 64) + 3 * normed(3, 64, 64) + conv(1, flat, 64)
    component = normed(3, 4, 32) + normed(3, 32, 32) + normed(3, 32, 64) + normed(3, 64, 64)
    component += conv(1, flat, 2 * 32)
    pictures = normed(3, 32 + 2, 32) + 3 * normed(3, 32, 32) + conv(1, 32, 3)
    masks = normed(1, 32, 256) + up(256, 256, 4) + up(256, 128, 2) + up(128, 64, 4) + up(64, 16, 4)
    masks += normed(3, 16, 16) + conv(3, 16, 1)

    def lstm(inputs):
        return (
            4 * 64 * (inputs + 64 + 2) + 2 * 64 + conv(1, 64, 2 * 32)
        )  # with its learned start and its outputs

    chains = lstm(32 + 64) + lstm(32) + 32  # and the first mask's latent
    prior = chain(32, 64, 64, 2 * 32)

    assert size(model.image_encoder) + size(model.cell_head) == encoder + heads
    assert size(model.what_encoder) == what_encoder
    assert size(model.decoder) == decoder
    background = image + component + pictures + masks + chains + prior
    assert size(model.background) == background
    assert size(model) == encoder + heads + what_encoder + decoder + background == 5_480_131
    published = Space(dataclasses.replace(Space.Config(), what_dim=32), SceneShape(3, 128, 128))
    assert size(published) == 5_480_131 - (A - 32) * (2 * 257 + 256) == 5_307_651


def test_sub_pixel_layers_start_as_the_convolutions_that_they_are():
    """Torch's start of a 1x1 convolution: weights and biases even between plus and minus 1 / sqrt(inputs)."""
    torch.manual_seed(0)
    layer, published = SubPixelConv(64, 8, 4), torch.nn.Conv2d(64, 8 * 16, 1)
    assert (layer.weight.numel(), layer.bias.numel()) == (published.weight.numel(), published.bias.numel())
    for ours, theirs in ((layer.weight, published.weight), (layer.bias, published.bias)):
        assert ours.abs().max() <= 1 / 8
        assert float(ours.detach().std()) == pytest.approx(float(theirs.detach().std()), rel=0.15)
