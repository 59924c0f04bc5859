"""SPACE: its fast parts against the plain ones, its loss against torch.distributions, and its contract."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import distributions as D
from torch import nn

from objbench.errors import UsageError
from objbench.latents import bernoulli_kl, normal_kl, relaxed_bernoulli
from objbench.options import build
from objbench.scenes import SceneShape
from objbench.spatial import boxes_around, canvases
from objbench_plugins.space import losses, networks
from objbench_plugins.space import model as space_model
from objbench_plugins.space.background import Background
from objbench_plugins.space.compose import Canvases, Windows
from objbench_plugins.space.config import SMALL
from objbench_plugins.space.model import Space
from objbench_plugins.space.networks import BroadcastDecoder
from objbench_plugins.space.reference import compose_plain, frames_plain

TINY = {
    **SMALL,
    "steps": 100,
    "glimpse": 8,
    "mlp_width": 32,
    "boundary_width": 2,
    "gate_cells": 0,
    "what_dim": 5,
}


def small_space(channels=1, height=32, width=32, **options):
    torch.manual_seed(0)
    return Space(build(Space.Config, "space", TINY, options), SceneShape(channels, height, width))


def some_objects(n=2, grid=(4, 5), glimpse=10, channels=3, height=40, width=48, dtype=torch.float64):
    """Boxes from under a pixel to beyond the image, glimpses with transparent parts, logits up to 100."""
    gen = torch.Generator().manual_seed(0)
    k = grid[0] * grid[1]

    def rand(*shape):
        return torch.rand(*shape, generator=gen, dtype=torch.float64).to(dtype)

    size = torch.exp(rand(n, k, 2) * 5 - 0.7)  # 0.5 .. 74 px
    boxes = boxes_around(rand(n, k, 2) * 2 - 0.5, size, grid, (height, width))
    alpha = (rand(n, k, 1, glimpse, glimpse) * 1.5 - 0.4).clamp(0, 1)
    colour = alpha * rand(n, k, channels, glimpse, glimpse)
    return [t.requires_grad_() for t in (boxes, colour, alpha, rand(n, k) * 100)]


@pytest.mark.parametrize("windows", [Windows, Canvases])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_foreground_equals_the_dense_softmax_in_values_and_gradients(channels, windows):
    inputs = some_objects(channels=channels)
    boxes, colour, alpha, sharpness = inputs
    fast = torch.cat(windows(boxes, 10, 40, 48).compose(colour, alpha, sharpness, cells=20), 1)
    plain = torch.cat(compose_plain(boxes, colour, alpha, sharpness, 40, 48), 1)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((fast * weight).sum(), inputs),
        torch.autograd.grad((plain * weight).sum(), inputs),
        strict=True,
    ):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


@pytest.mark.parametrize("windows", [Windows, Canvases])
def test_in_single_precision_it_is_as_close_to_the_truth_as_the_dense_softmax(windows):
    exact_inputs, inputs = some_objects(), some_objects(dtype=torch.float32)
    weight = torch.randn(2, 4, 40, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(compose, given):
        painted = torch.cat(compose(*given), 1)
        return [painted, *torch.autograd.grad((painted * weight.to(painted)).sum(), given)]

    exact = run(lambda *given: compose_plain(*given, 40, 48), exact_inputs)
    ours = run(lambda boxes, *rest: windows(boxes, 10, 40, 48).compose(*rest, cells=20), inputs)
    dense = run(lambda *given: compose_plain(*given, 40, 48), inputs)
    assert (ours[0] - exact[0]).abs().max() < 1e-4
    for a, b, c in zip(ours, dense, exact, strict=True):
        assert (a - c).square().mean() < 4 * (b - c).square().mean()


@pytest.mark.parametrize("windows", [Windows, Canvases])
def test_cells_that_are_left_out_count_as_absent_ones(windows):
    boxes, colour, alpha, sharpness = some_objects()
    present = torch.zeros(2, 20, 1, 1, 1, dtype=torch.float64)
    present[:, :7] = 1
    dense = compose_plain(boxes, colour * present, alpha * present, sharpness, 40, 48)
    few = windows(boxes[:, :7], 10, 40, 48).compose(colour[:, :7], alpha[:, :7], sharpness[:, :7], cells=20)
    for a, b in zip(few, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("windows", [Windows, Canvases])
def test_boxes_outside_the_image_paint_nothing(windows):
    boxes = torch.tensor([[[-40.0, -40, -20, -20], [60, 60, 90, 90], [-30, 5, -10, 9]]])
    ones = torch.ones(1, 3, 1, 8, 8)
    foreground, weight = windows(boxes, 8, 32, 32).compose(ones, ones, torch.full((1, 3), 100.0), cells=3)
    assert foreground.abs().max() == 0
    assert weight.abs().max() == 0


@pytest.mark.parametrize("windows", [Windows, Canvases])
def test_frames_equal_painted_frames(windows):
    boxes, _, _, presence = some_objects()
    fast = windows(boxes, 10, 40, 48).frames(presence, 3)
    plain = frames_plain(boxes, presence, 10, 3, 40, 48)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(fast.square().sum(), boxes)[0],
        torch.autograd.grad(plain.square().sum(), boxes)[0],
    )


def test_the_broadcast_decoder_equals_convolving_the_broadcast_latent():
    torch.manual_seed(0)
    decoder = BroadcastDecoder(6, 3, (32, 64), 8).double().eval()
    latent = torch.randn(4, 6, dtype=torch.float64)
    everywhere = latent[:, :, None, None].expand(-1, -1, 40, 72)
    coordinates = decoder.coordinates.expand(4, -1, -1, -1)
    plain = decoder.rest(decoder.first(torch.cat([everywhere, coordinates], 1)))
    assert plain.shape == (4, 3, 32, 64)
    torch.testing.assert_close(decoder(latent), plain)

    def gradients(picture):
        decoder.zero_grad()
        picture.square().sum().backward()
        return {name: p.grad.clone() for name, p in decoder.named_parameters()}

    exact = gradients(plain)
    for name, gradient in gradients(decoder(latent)).items():
        torch.testing.assert_close(gradient, exact[name], msg=name)


@pytest.mark.parametrize("nets", ["conv", "mlp"])
@pytest.mark.parametrize("components", [1, 3])
def test_background_masks_share_out_every_pixel(components, nets):
    torch.manual_seed(0)
    config = build(
        Space.Config, "space", {"components": components, "background_nets": nets, "background_width": 16}
    )
    scene = Background(config, SceneShape(3, 32, 64))(torch.rand(2, 3, 32, 64), sample=True)
    assert scene.masks.shape == (2, components, 1, 32, 64)
    assert scene.pictures.shape == (2, components, 3, 32, 64)
    torch.testing.assert_close(scene.masks.sum(1), torch.ones(2, 1, 32, 64))
    assert (scene.mask_kl > 0).all()
    assert (scene.component_kl > 0).all()


def test_sticks_break_in_order():
    config = build(Space.Config, "space", {"components": 3, "background_nets": "mlp", "background_width": 16})
    background = Background(config, SceneShape(1, 32, 32))
    latent = torch.randn(1, 3, config.mask_dim)
    share = torch.sigmoid(background.mask_decoder(latent[0, :2]))
    expected = torch.stack([share[0], (1 - share[0]) * share[1], (1 - share[0]) * (1 - share[1])])
    torch.testing.assert_close(background.masks(latent, torch.Size([32, 32]))[0], expected)


def test_the_pixel_likelihood_is_a_mixture_of_gaussians():
    model = small_space(channels=3, fg_sigma=0.2, bg_sigma=0.1)
    images, pictures, foreground = torch.rand(2, 3, 4, 4), torch.rand(2, 2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    masks, weight = torch.rand(2, 2, 1, 4, 4).softmax(1), torch.rand(2, 1, 4, 4)
    weights = torch.cat([weight[:, None], (1 - weight[:, None]) * masks], 1).expand(-1, -1, 3, -1, -1)
    means = torch.cat([foreground[:, None], pictures], 1)
    stds = torch.tensor([0.2, 0.1, 0.1])[:, None, None, None].expand_as(means)
    mixture = D.MixtureSameFamily(
        D.Categorical(weights.movedim(1, -1)), D.Normal(means.movedim(1, -1), stds.movedim(1, -1))
    )
    ours = model.log_likelihood(images, masks, pictures, foreground, weight)
    torch.testing.assert_close(ours, mixture.log_prob(images).sum((1, 2, 3)), rtol=1e-3, atol=0.05)  # EPS


def test_divergences_equal_those_of_torch():
    mean, std, logits = torch.randn(50), torch.rand(50) + 0.1, torch.randn(50) * 4
    torch.testing.assert_close(
        normal_kl(mean, std, -1.27, 0.1), D.kl_divergence(D.Normal(mean, std), D.Normal(-1.27, 0.1))
    )
    torch.testing.assert_close(
        bernoulli_kl(logits, math.log(0.01), math.log(0.99)),
        D.kl_divergence(D.Bernoulli(logits=logits), D.Bernoulli(torch.full((50,), 0.01))),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_relaxed_presence_is_that_of_torch():
    torch.manual_seed(0)
    logits = torch.full((200_000,), 0.7)
    ours = relaxed_bernoulli(logits, 0.5)
    theirs = D.RelaxedBernoulli(torch.tensor(0.5), logits=logits).sample()
    at = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(ours.quantile(at), theirs.quantile(at), rtol=0, atol=0.01)


def test_priors_are_annealed_between_their_two_steps():
    values = [losses.linear(when, 0.2, 0.6, 1.0, -1.0) for when in (0, 0.2, 0.4, 0.6, 1)]
    assert values == pytest.approx([1, 1, 0, -1, -1])
    assert losses.linear(0, 0, 0, 1.0, -1.0) == 1


def test_published_schedules_are_those_of_160_000_steps():
    c = Space.Config()
    changes = [
        c.presence_from,
        c.presence_until,
        c.scale_from,
        c.scale_until,
        c.temperature_until,
        c.boundary_until,
    ]
    assert [round(f * c.steps) for f in changes] == [4_000, 10_000, 10_000, 20_000, 20_000, 100_000]


def test_the_terms_follow_the_schedules():
    images = torch.rand(2, 1, 32, 32)
    model = small_space(boundary_until=0.5, scale_from=0.1, scale_until=0.2, scale_end=3.0)

    def terms(step):
        torch.manual_seed(1)
        return model.training_step(images, step)

    assert "boundary" in terms(49)
    assert "boundary" not in terms(50)
    assert terms(40)["scale"] > 10 * terms(0)["scale"]
    assert terms(40)["pres"] > terms(0)["pres"]  # every cell starts present, and the prior falls


def test_a_fixed_weight_replaces_that_of_the_foreground():
    images = torch.zeros(2, 1, 32, 32)
    torch.manual_seed(1)
    free = small_space().training_step(images, 0)["recon"]
    for fixed_alpha in (0.0, 0.3):
        model = small_space(fixed_alpha=fixed_alpha, fixed_alpha_until=0.5)
        given = []
        likelihood = model.log_likelihood

        def remember(*of_scene, likelihood=likelihood, given=given):
            given.append(of_scene)
            return likelihood(*of_scene)

        model.log_likelihood = remember
        torch.manual_seed(1)
        fixed = model.training_step(images, 0)
        shown = model._watch["weight"]
        (_, _, pictures, foreground, weight) = given[0]
        assert (weight == fixed_alpha).all()
        assert shown.std() > 0  # the rendered weight itself is not fixed
        background = D.Normal(pictures[:, 0], model.config.bg_sigma).log_prob(images).double()
        front = D.Normal(foreground, model.config.fg_sigma).log_prob(images).double()
        mixed = (fixed_alpha * front.exp() + (1 - fixed_alpha) * background.exp()).log()
        expected = float(-mixed.sum((1, 2, 3)).mean().detach())
        assert float(fixed["recon"].detach()) == pytest.approx(expected, rel=1e-3, abs=0.5)
        assert expected != pytest.approx(float(free.detach()), rel=1e-2)
        torch.manual_seed(1)
        model.training_step(images, 50)  # it has ended
        assert torch.equal(given[1][-1].detach(), model._watch["weight"])


def test_each_parameter_has_one_optimiser_and_gets_a_gradient():
    model = small_space(channels=3, components=2)
    foreground, background = model.optimizers()
    assert isinstance(foreground, torch.optim.RMSprop)
    assert isinstance(background, torch.optim.Adam)
    assert foreground.param_groups[0]["lr"] == model.config.lr
    assert background.param_groups[0]["lr"] == model.config.lr_background
    held = [p for o in (foreground, background) for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    assert {id(p) for p in background.param_groups[0]["params"]} == {
        id(p) for p in model.background.parameters()
    }
    sum(model.training_step(torch.rand(2, 3, 32, 32), 0).values()).backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ] == []


def test_published_networks_take_a_step():
    torch.manual_seed(0)
    config = {"components": 2, "what_dim": 8, "background_width": 16, "cell_size": 16}
    model = Space(build(Space.Config, "space", config), SceneShape(3, 64, 96))
    images = torch.rand(2, 3, 64, 96)
    terms = model.training_step(images, 0)
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert model.detect(images).what.shape[1] == 8
        assert model.reconstruct(images).shape == images.shape


def test_bfloat16_networks_change_little():
    images = torch.rand(2, 1, 32, 32)

    def terms(**options):
        model = small_space(components=2, **options)
        torch.manual_seed(1)
        return model.training_step(images, 0)

    exact, rough = terms(), terms(precision="bfloat16")
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert float(rough[name].detach()) == pytest.approx(float(value.detach()), rel=0.05, abs=1)
    assert exact["recon"] != rough["recon"]


def test_gating_with_all_cells_changes_nothing_and_with_few_only_what_they_hold():
    images = torch.rand(3, 1, 32, 32)

    def run(**options):
        model = small_space(**options)
        torch.manual_seed(1)
        return model.training_step(images, 50)

    plain, all_cells, few = run(), run(gate_cells=16), run(gate_cells=4)
    assert plain == all_cells
    for name in ("pres", "scale", "shift", "depth"):
        assert plain[name] == few[name]
    assert few["what"] < plain["what"] / 2


def test_phases_begin_and_end_at_their_share_of_the_steps():
    at = {"gate_from": 0.1, "fixed_alpha_until": 0.2, "boundary_from": 0.3, "boundary_until": 0.5}
    model = small_space(warmup_images=1, gate_cells=4, boundary=0.5, **at)  # of 100 steps
    phases = {step: model.phase(step) for step in (0, 9, 10, 11, 19, 20, 29, 30, 31, 49, 50, 99)}
    assert [step for step, phase in phases.items() if phase.warmup] == [0, 9]
    assert [step for step, phase in phases.items() if phase.gated] == [10, 11, 19, 20, 29, 30, 31, 49, 50, 99]
    assert [step for step, phase in phases.items() if phase.fixed_alpha] == [0, 9, 10, 11, 19]
    assert [step for step, phase in phases.items() if phase.boundary] == [30, 31, 49]
    never = small_space(warmup_images=0, gate_cells=0, boundary=0.0, fixed_alpha_until=0.0)
    assert not any(any(never.phase(step)) for step in (0, 10, 50, 99))
    ungated = small_space(warmup_images=1, gate_cells=0, gate_from=0.1)  # as GMAIR and SPAIR
    assert [step for step in (0, 9, 10, 99) if ungated.phase(step).warmup] == [0, 9]
    assert not any(ungated.phase(step).gated for step in (0, 9, 10, 99))


def test_before_gating_a_step_uses_the_first_images_of_the_batch():
    model = small_space(warmup_images=2, gate_from=0.1, gate_cells=4)
    used, infer = [], model.infer_cells
    model.infer_cells = lambda images: (used.append(images), infer(images))[1]
    images = torch.rand(5, 1, 32, 32)
    for step, n in ((9, 2), (10, 5)):
        model.training_step(images, step)
        assert torch.equal(used[-1], images[:n])


def test_of_objects_in_one_place_the_nearest_shows():
    """A depth is larger the farther it is; which object is listed first does not matter."""
    model = small_space()
    colours = torch.tensor([0.2, 0.9]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 8, 8)
    boxes = torch.tensor([[[4.0, 4, 20, 20]] * 2])
    for depth, shown in (([-1.0, 1.0], 0.2), ([1.0, -1.0], 0.9), ([0.0, 0.0], 0.55)):
        objects = space_model.Objects(
            presence=torch.ones(1, 2),
            boxes=boxes,
            depth=torch.tensor([depth]),
            what_mean=torch.zeros(1, 2, 5),
            what_std=torch.ones(1, 2, 5),
            colour=colours,
            alpha=torch.ones(1, 2, 1, 8, 8),
        )
        foreground, weight = model.compose(objects, model.windows(boxes))
        assert float(foreground[0, 0, 12, 12]) == pytest.approx(shown, abs=1e-3)
        assert float(weight[0, 0, 12, 12]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("cell", "aside"), [(8, 0), (16, -4)])  # published: a 3x3 convolution of stride 2
def test_a_cells_features_see_the_image_around_the_cell(cell, aside):
    encoder = networks.ImageEncoder(1, cell, 4)
    layers = [nn.Identity() if isinstance(m, networks.GroupNorm) else m for m in encoder.trunk]  # it sees all
    trunk = nn.Sequential(*layers)
    for p in trunk.parameters():
        nn.init.constant_(p, 0.01)
    images = torch.rand(1, 1, 256, 256, requires_grad=True)
    row, column = 8 * 8 // cell, 7 * 8 // cell
    (grad,) = torch.autograd.grad(trunk(images)[0, :, row, column].sum(), images)
    seen = grad[0, 0].abs() > 0
    for lit, at in ((seen.any(1), row), (seen.any(0), column)):
        where = lit.nonzero()[:, 0]
        assert (int(where[0]) + int(where[-1]) + 1) / 2 == pytest.approx((at + 0.5) * cell + aside, abs=0.5)


def test_the_boundary_loss_is_a_gaussian_penalty_on_what_is_painted_on_frames(monkeypatch):
    """At each pixel -log N(1000 / 32^2 x frames x w; 0, 0.7^2), without its constant."""
    model = small_space(boundary=0.5, boundary_until=1.0)
    seen, render = [], model.render
    monkeypatch.setattr(model, "render", lambda *given: (seen.append(render(*given)), seen[-1])[1])
    terms = model.training_step(torch.rand(2, 1, 32, 32), 0)
    _, weight, frames = seen[0]
    assert frames.max() > 0.1
    gaussian = D.Normal(0.0, 0.7)
    crossed = 1000 / 1024 * frames * weight
    expected = 0.5 * (gaussian.log_prob(torch.zeros(())) - gaussian.log_prob(crossed)).sum((1, 2, 3)).mean()
    torch.testing.assert_close(terms["boundary"], expected, rtol=1e-4, atol=1e-4)


def test_published_networks_have_their_published_sizes():
    config = dataclasses.replace(Space.Config(), components=5)
    assert (config.scale_std, config.gate_cells, config.warmup_images) == (0.1, 0, 0)
    model = Space(config, SceneShape(3, 128, 128))
    groups = [m.num_groups for m in model.background.mask_decoder.modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [16, 16, 16, 16, 16, 8, 8, 4, 4, 4]
    assert model.grid == (16, 16)


def test_what_is_watched_is_the_number_of_objects_and_the_share_of_the_foreground():
    images = torch.rand(2, 1, 32, 32)
    assert small_space().watch() == {}
    shares = []
    for bias, objects in ((3.0, 16), (-3.0, 0)):
        model = small_space(presence_bias=bias, alpha_bias=5.0, presence_start=0.9)
        model.training_step(images, 0)
        watched = model.watch()
        assert watched["objects"] == objects
        shares.append(watched["foreground"])
    assert 0 <= shares[1] < 0.1 < shares[0] <= 1


def test_it_learns():
    model = small_space(steps=40, lr=1e-3)
    images = torch.zeros(8, 1, 32, 32)
    for i, image in enumerate(images):
        x, y = (5 * i) % 20 + 2, (7 * i) % 20 + 2
        image[:, y : y + 8, x : x + 8] = 1
    optimizers, found = model.optimizers(), []
    for step in range(40):
        loss = sum(model.training_step(images, step).values())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < found[0] - 500


@pytest.mark.parametrize("channels", [1, 3])
def test_detections_are_whole_repeatable_and_each_image_its_own(channels):
    model = small_space(channels, components=2).eval()
    images = torch.rand(4, channels, 32, 32)
    with torch.no_grad():
        together, again, alone = model.detect(images), model.detect(images), model.detect(images[2:3])
    assert len(together.scores) > 0
    assert torch.equal(together.boxes, again.boxes)
    assert together.clusters is None
    mine = together.image == 2
    torch.testing.assert_close(together.boxes[mine], alone.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(together.what[mine], alone.what, rtol=1e-4, atol=1e-4)
    assert together.boxes.min() >= 0
    assert together.boxes.max() <= 32
    assert (together.scores >= 0.01).all()
    assert (together.boxes[:, 2:] >= together.boxes[:, :2]).all()


def test_trimming_only_ever_shrinks_boxes():
    images = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        whole, cut = (
            small_space(trim=trim, alpha_bias=2.0).eval().detect(images).boxes for trim in (0.0, 0.4)
        )
    assert (cut[:, :2] >= whole[:, :2] - 1e-4).all()
    assert (cut[:, 2:] <= whole[:, 2:] + 1e-4).all()
    assert (cut - whole).abs().max() > 1


def test_shares_are_the_weights_of_the_dense_softmax():
    boxes, _, alpha, sharpness = some_objects()
    painted = canvases(alpha * sharpness[:, :, None, None, None], boxes, 40, 48)[:, :, 0]
    dense = painted.softmax(1)
    shares = Canvases(boxes, 10, 40, 48).shares(alpha, sharpness, cells=20)
    torch.testing.assert_close(shares, dense, rtol=1e-9, atol=1e-9)
    absent = torch.cat([painted[:, :7], torch.zeros_like(painted[:, 7:])], 1).softmax(1)[:, :7]
    few = Canvases(boxes[:, :7], 10, 40, 48).shares(alpha[:, :7], sharpness[:, :7], cells=20)
    torch.testing.assert_close(few, absent, rtol=1e-9, atol=1e-9)


def test_where_another_object_is_in_front_an_object_is_not_visible():
    """Two bright boxes that overlap by half: the one behind is cut to its other half."""
    model = small_space(trim=0.2)
    objects = space_model.Objects(
        presence=torch.ones(1, 2),
        boxes=torch.tensor([[[4.0, 4, 20, 20], [12, 4, 28, 20]]]),
        depth=torch.tensor([[1.0, -1.0]]),  # the first is farther
        what_mean=torch.zeros(1, 2, 5),
        what_std=torch.ones(1, 2, 5),
        colour=torch.ones(1, 2, 1, 8, 8),
        alpha=torch.ones(1, 2, 1, 8, 8),
    )
    model.infer_modes = lambda images: objects
    visible = model.visible(objects)
    assert visible.shape == (1, 2, 8, 8)
    assert (visible[0, 1] > 0.9).all()
    assert (visible[0, 0, :, :4] > 0.9).all()
    assert (visible[0, 0, :, 4:] < 0.1).all()
    found = {}
    for trim_hidden in (False, True):
        model.config = dataclasses.replace(model.config, trim_hidden=trim_hidden)
        found[trim_hidden] = model.detect(torch.zeros(1, 1, 32, 32)).boxes
    torch.testing.assert_close(found[False], objects.boxes[0])
    assert model.config.trim_edges == "crossing"
    # 16 px show 8 glimpse pixels. The last visible one is the fourth, its centre at 11 px, and the next, at 13 px, is
    # dark: a line from 1 to 0 between them is 0.2 (trim) at 12.6 px.
    torch.testing.assert_close(
        found[True], torch.tensor([[4.0, 4, 12.6, 20], [12, 4, 28, 20]]), rtol=0, atol=0.01
    )


def test_reconstruction_is_a_picture():
    model = small_space(3).eval()
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32)
        picture = model.reconstruct(images)
        assert torch.equal(model.reconstruct(images), picture), "of modes, not of samples"
    assert picture.shape == (2, 3, 32, 32)
    assert picture.min() >= 0
    assert picture.max() <= 1


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((1, 48, 64), {"cell_size": 32}, "space.cell_size=32 does not divide an image of 48x64"),
        ((1, 40, 40), {"cell_size": 8}, "multiples of 32, but images are 40x40"),
        ((1, 64, 64), {"cell_size": 12}, "cell_size=12 is not 8, 16 or 32"),
        ((1, 64, 64), {"glimpse_nets": "conv"}, "glimpse=8"),
        ((1, 64, 64), {"boundary_width": 4}, "boundary_width=4 leaves no middle of glimpse=8"),
        ((1, 64, 64), {"background_width": 24}, "background_width=24"),
        ((1, 64, 64), {"components": 0}, "space.components=0"),
        ((1, 64, 64), {"trim": -0.1}, "space.trim=-0.1"),
        ((1, 64, 64), {"presence_from": 0.5}, "presence_until=0.0625 is before presence_from=0.5"),
        (
            (1, 64, 64),
            {"boundary_until": 0.2, "boundary_from": 0.3},
            "boundary_until=0.2 is before boundary_from=0.3",
        ),
    ],
)
def test_bad_input_is_reported_in_a_line(shape, options, said):
    with pytest.raises(UsageError, match=said) as caught:
        Space(build(Space.Config, "space", TINY, options), SceneShape(*shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["demo", "small", "paper"])
@pytest.mark.parametrize("data", ["multimnist", "fruit2d", "fruit2d-sim"])
def test_settings_are_of_known_options(protocol, data):
    config = build(Space.Config, "space", Space.settings(protocol, data))
    if (protocol, data) == ("paper", "multimnist"):
        assert dataclasses.asdict(config) == dataclasses.asdict(Space.Config())
    assert config.cell_size == 8


def gradients_of(net, size):
    """Values and gradients, with a nonlinearity in place after the layer."""
    x = torch.linspace(-1, 1, math.prod(size)).view(size).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = F.celu(net(x), inplace=True)
    y.square().sum().backward()
    return [y, x.grad, net.weight.grad, net.bias.grad]


def test_a_convolution_as_a_product_equals_torchs():
    ours, torchs = networks.FullSizeConv(6, 8, 4), nn.Conv2d(6, 8, 4)
    ours.load_state_dict(torchs.state_dict())
    size = (3, 6, 4, 4)
    for found, expected in zip(gradients_of(ours, size), gradients_of(torchs, size), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_sub_pixel_convolution_is_a_convolution_and_pixel_shuffle():
    """Its weights are those of the convolution, in the order of pixels of the tile, then channels."""
    ours, conv = networks.SubPixelConv(6, 8, 2), nn.Conv2d(6, 8 * 4, 1)
    order = torch.arange(32).view(8, 4).T.flatten()
    with torch.no_grad():
        ours.weight.copy_(conv.weight[order, :, 0, 0])
        ours.bias.copy_(conv.bias[order])
    size = (3, 6, 4, 5)

    class Published(nn.Module):
        weight, bias = property(lambda self: conv.weight), property(lambda self: conv.bias)

        def forward(self, x):
            return F.pixel_shuffle(conv(x), 2)

    y, x, weight, bias = gradients_of(Published(), size)
    expected = [y, x, weight[order, :, 0, 0], bias[order]]
    for found, exact in zip(gradients_of(ours, size), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_a_sub_pixel_convolution_can_make_oblong_tiles():
    ours, deconvolution = networks.SubPixelConv(6, 8, (4, 2)), nn.ConvTranspose2d(6, 8, (4, 2), (4, 2))
    with torch.no_grad():
        ours.weight.copy_(deconvolution.weight.permute(2, 3, 1, 0).reshape(-1, 6))
        ours.bias.copy_(deconvolution.bias.repeat(8))
    x = torch.rand(3, 6, 1, 1)
    torch.testing.assert_close(ours(x), deconvolution(x))


def test_norm_of_half_precision_is_worked_out_in_single():
    x = torch.randn(4, 16, 6, 6).bfloat16().requires_grad_()
    norm = networks.GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    norm(x).float().square().sum().backward()
    found = [norm(x).float(), x.grad.float(), norm.weight.grad.clone()]
    norm.zero_grad()
    exact = x.detach().float().requires_grad_()
    norm(exact).bfloat16().float().square().sum().backward()
    for ours, plain in zip(found, [norm(exact), exact.grad, norm.weight.grad], strict=True):
        torch.testing.assert_close(ours, plain, rtol=0.01, atol=0.01 * float(plain.detach().abs().max()))


def test_painting_in_parts_is_painting_at_once(monkeypatch):
    torch.manual_seed(0)
    config = build(Space.Config, "space", {**Space.settings("demo", "multimnist"), "gate_cells": 0})
    model = Space(config, SceneShape(1, 64, 64))
    images = torch.rand(5, 1, 64, 64)

    def run():
        torch.manual_seed(1)
        model.zero_grad()
        terms = model.training_step(images, 1_000)  # the boundary loss among them
        torch.stack(list(terms.values())).sum().backward()
        return terms, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    terms, gradients = run()
    assert "boundary" in terms
    calls = []
    whole = model.render_part
    monkeypatch.setattr(model, "render_part", lambda part, framed: (calls.append(1), whole(part, framed))[1])
    monkeypatch.setattr(space_model, "RENDERED_AT_ONCE", 128)  # 64 cells: two images
    parted_terms, parted_gradients = run()
    assert len(calls) == 6  # three parts, there and back
    for name, term in terms.items():
        torch.testing.assert_close(parted_terms[name], term, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(parted_gradients[name], gradient, rtol=1e-4, atol=1e-5)
