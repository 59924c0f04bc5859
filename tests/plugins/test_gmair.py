"""GMAIR: every term against an independent computation, gating and painting against the plain way."""

import dataclasses
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from objbench.cells.matrix import matrix
from objbench.cells.protocols import protocol
from objbench.clusterer import Cut, Objects
from objbench.detector import Detector
from objbench.errors import UsageError
from objbench.latents import categorical_kl, gumbel_softmax, normal_kl, positive
from objbench.options import build
from objbench.plugins import load_plugins
from objbench.scenes import SceneShape
from objbench.spatial import canvases, crop, take_cells, top_cells
from objbench_plugins.gmair import mixture as gmair_mixture
from objbench_plugins.gmair import networks
from objbench_plugins.gmair.config import GmairConfig
from objbench_plugins.gmair.losses import EPS, log_presence_prior
from objbench_plugins.gmair.losses import presence_kl as presence_kl_of_logs
from objbench_plugins.gmair.mixture import inverse_softplus, start_mixture
from objbench_plugins.gmair.model import Gmair, WhatPrior
from objbench_plugins.gmair.reference import render_plain
from objbench_plugins.gmair.render import render, render_published
from objbench_plugins.kmeans.model import KMeans


def small(channels: int = 1, size: int = 32, **options) -> Gmair:
    """A little GMAIR: 4x4 cells."""
    torch.manual_seed(0)
    settings = {
        "what_dim": 8,
        "head_width": 16,
        "encoder_widths": "32-32",
        "decoder_width": 32,
        "base_box": 20,
    }
    config = build(GmairConfig, "gmair", Gmair.settings("demo", "multimnist"), settings, options)
    return Gmair(config, SceneShape(channels, size, size))


def pictures(n: int = 4, channels: int = 1, size: int = 32) -> torch.Tensor:
    gen = torch.Generator().manual_seed(3)
    images = torch.zeros(n, channels, size, size)
    for image in images:
        x, y = torch.randint(0, size - 9, (2,), generator=gen).tolist()
        image[:, y : y + 9, x : x + 7] = 0.5 + 0.5 * torch.rand(channels, 9, 7, generator=gen)
    return images


# Every KL against torch.distributions, and the mixture's against sampling


def presence_kl(chance: torch.Tensor, prior: float) -> torch.Tensor:
    return presence_kl_of_logs(chance, math.log(prior + EPS), math.log(1 - prior + EPS))


def test_bernoulli_kl_is_torchs():
    chance = torch.rand(100).clamp(0.01, 0.99)
    for prior in (0.9, 0.3, 6e-6):
        expected = kl_divergence(Bernoulli(chance), Bernoulli(torch.tensor(prior)))
        torch.testing.assert_close(presence_kl(chance, prior), expected, rtol=1e-3, atol=1e-5)


def test_bernoulli_kl_at_the_first_step_costs_an_absent_cell_twenty_nats():
    assert presence_kl(torch.tensor(0.0), 1.0).item() == pytest.approx(-math.log(1e-9), rel=1e-3)
    assert presence_kl(torch.tensor(1.0), 1.0).item() == pytest.approx(0, abs=1e-6)


def test_normal_kl_is_torchs():
    mean, prior_mean = torch.randn(2, 50)
    std, prior_std = torch.rand(2, 50) + 0.1
    expected = kl_divergence(Normal(mean, std), Normal(prior_mean, prior_std))
    torch.testing.assert_close(normal_kl(mean, std, prior_mean, prior_std), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        normal_kl(mean, std), kl_divergence(Normal(mean, std), Normal(0.0, 1.0)), rtol=1e-4, atol=1e-5
    )


def test_categorical_kl_is_torchs():
    logits = 3 * torch.randn(50, 10)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros(50, 10)))
    torch.testing.assert_close(categorical_kl(logits), expected, rtol=1e-4, atol=1e-5)


def test_what_kl_is_the_expected_log_ratio_under_the_mixture_component():
    model = small()
    cat = torch.eye(model.config.clusters)[3].expand(1, 1, -1)
    mean, std = torch.randn(1, 1, 8), torch.rand(1, 1, 8) + 0.2
    prior = model.what_prior(cat, WhatPrior.LEARNED)
    kl = normal_kl(mean, std, *prior).sum()
    what = mean + std * torch.randn(200_000, 1, 8)
    sampled = (Normal(mean, std).log_prob(what) - Normal(*prior).log_prob(what)).sum(-1)
    assert kl.item() == pytest.approx(
        sampled.mean().item(), abs=5 * sampled.std().item() / math.sqrt(200_000)
    )


def test_gumbel_softmax_picks_each_cluster_with_its_chance():
    logits = torch.tensor([0.0, 1.0, 2.0])
    torch.manual_seed(0)
    picked = gumbel_softmax(logits.expand(50_000, 3), 1.0).argmax(-1)
    share = torch.bincount(picked, minlength=3) / 50_000
    torch.testing.assert_close(share, logits.softmax(0), atol=0.01, rtol=0)


# The loss as a whole


def test_terms_are_those_of_equation_11_computed_again_the_plain_way():
    """Same noise, dense canvases, loops over cells: the sum and every term agree."""
    model = small(presence="mean", mixture_start=0, gate_cells=0, warmup_images=0).train()
    images, step = pictures(), 7
    torch.manual_seed(5)
    terms = model.training_step(images, step)

    torch.manual_seed(5)
    c = model.config
    cells = model.infer_cells(images)
    n, k = cells.presence_prob.shape
    objects = model.infer_objects(images, cells, top_cells(cells.presence_prob, 0), sample=True)
    torch.manual_seed(5)
    where = cells.where_mean + cells.where_std * torch.randn_like(cells.where_mean)
    depth = cells.depth_mean + cells.depth_std * torch.randn_like(cells.depth_mean)
    assert torch.equal(objects.boxes, model.boxes(where))
    assert torch.equal(objects.depth, depth)
    colour, alpha = model.decode(objects.what)
    prior = math.exp(-0.01 * step)
    expected = dict.fromkeys(terms, 0.0)

    shown = alpha * cells.presence_prob[..., None, None, None]
    importance = (shown * 4 * torch.sigmoid(depth)[..., None, None, None]).clamp(min=1e-4)
    top = canvases(colour * shown * importance, objects.boxes, 32, 32).sum(1)
    image = (top / (canvases(importance, objects.boxes, 32, 32).sum(1) + 1e-9)).clamp(0, 1)
    painted = canvases(colour * shown, objects.boxes, 32, 32)[:, :, 0]
    for i in range(n):
        x, y = images[i], image[i]
        expected["recon"] += (
            c.recon
            * float(-(x * y.log().clamp(min=-100) + (1 - x) * (1 - y).log().clamp(min=-100)).sum())
            / n
        )
        for pixel in painted[i].flatten(1).T:
            expected["overlap"] += c.overlap * float(pixel.sum() - pixel.max()) / n
        for j in range(k):
            q = cells.presence_prob[i, j]
            expected["pres"] += float(kl_divergence(Bernoulli(q), Bernoulli(torch.tensor(prior)))) / n
            for name, normal in (
                ("where", Normal(cells.where_mean[i, j], cells.where_std[i, j])),
                ("depth", Normal(cells.depth_mean[i, j], cells.depth_std[i, j])),
            ):
                expected[name] += float(q * kl_divergence(normal, Normal(0.0, 1.0)).sum()) / n
            cat = Categorical(logits=objects.cat_logits[i, j])
            expected["cat"] += float(q * kl_divergence(cat, Categorical(logits=torch.zeros(c.clusters)))) / n
            component = Normal(
                model.prior_mean(objects.cat[i, j]), positive(model.prior_std(objects.cat[i, j]))
            )
            what = Normal(objects.what_mean[i, j], objects.what_std[i, j])
            expected["what"] += float(q * kl_divergence(what, component).sum()) / n
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=2e-3, abs=1e-3), name


def test_gating_with_every_cell_is_no_gating_gradients_included():
    images = pictures()
    plain, gated = small(gate_cells=0).train(), small(gate_cells=16, gate_step=0).train()
    grads = []
    for model in (plain, gated):
        torch.manual_seed(1)
        sum(model.training_step(images, 500).values()).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-5, atol=1e-6)


def test_gating_keeps_the_cells_of_highest_presence_and_the_presence_kl_of_all():
    model = small(gate_cells=3, gate_step=10)
    presence = torch.rand(2, 16)
    kept = top_cells(presence, 3)
    assert set(kept[0].tolist()) == set(presence[0].argsort(descending=True)[:3].tolist())
    assert [model.phase(step).gated for step in (9, 10)] == [False, True]
    decoded, decode = [], model.decode
    model.decode = lambda what: (decoded.append(what.shape[1]), decode(what))[1]
    for step in (9, 10):
        model.train().training_step(pictures(), step)
    assert decoded == [16, 3]
    torch.manual_seed(0)
    gated = model.train().training_step(pictures(), 10)["pres"]
    ungated = small(gate_cells=0).train().training_step(pictures(), 10)["pres"]
    torch.testing.assert_close(gated, ungated)


def some_objects(n: int, k: int, channels: int, largest: float) -> tuple[torch.Tensor, ...]:
    """Boxes up to `largest`, some far outside an image of 40x56, and their presence, depth, colour and alpha."""
    gen = torch.Generator().manual_seed(2)
    centre = torch.rand(n, k, 2, generator=gen) * torch.tensor([70, 54]) - 7
    sides = largest * torch.sigmoid(3 * torch.randn(n, k, 2, generator=gen))
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], -1)
    presence, depth = torch.rand(n, k, generator=gen), torch.randn(n, k, generator=gen)
    glimpses = torch.rand(n, k, channels + 1, 12, 12, generator=gen)
    parts = (boxes, presence, depth, glimpses[:, :, :-1].clone(), glimpses[:, :, -1:].clone())
    return tuple(part.requires_grad_() for part in parts)


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("largest", [20.0, 90.0])  # windows that are smaller than the image, and larger
def test_the_published_renderer_is_that_of_whole_canvases(channels, largest, at_once, monkeypatch):
    objects = some_objects(3, 9, channels, largest)
    side = math.floor(largest * 13 / 12) + 2
    floats = 9 * (channels + 2) * min(side, 40) * min(side, 56)
    monkeypatch.setattr("objbench_plugins.gmair.published.AT_ONCE", at_once * floats)
    fast, plain = (way(*objects, (40, 56), largest, True) for way in (render_published, render_plain))
    assert render_published(*objects, (40, 56), largest)[1] is None
    grads = []
    for image, overlap in (fast, plain):
        weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
        loss = (image * weight).sum() + (overlap * torch.tensor([0.1, 1.0, 0.0])).sum()
        grads.append(torch.autograd.grad(loss, objects))
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast[1], plain[1], rtol=1e-4, atol=1e-3)
    assert plain[1].max() > 1
    for ours, theirs in zip(*grads, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_renderers_agree_where_interpolation_does_nothing():
    """Glimpse pixels that fall on image pixels: multiplying before or after interpolation is the same."""
    torch.manual_seed(0)
    boxes = torch.tensor([[[0.0, 0, 16, 16], [8, 8, 24, 24]]])
    presence, depth = torch.tensor([[0.9, 0.4]]), torch.tensor([[0.3, -1.0]])
    colour, alpha = torch.rand(1, 2, 1, 16, 16), torch.rand(1, 2, 1, 16, 16)
    found = render(boxes, presence, depth, colour, alpha, (32, 32), with_overlap=True)
    published = render_published(boxes, presence, depth, colour, alpha, (32, 32), 16.0, with_overlap=True)
    for ours, theirs in zip(found, published, strict=True):
        assert theirs.max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert render(boxes, presence, depth, colour, alpha, (32, 32))[1] is None


def test_the_published_renderer_is_an_option():
    images = pictures()
    with torch.no_grad():
        linear, published = (small(renderer=r).eval().reconstruct(images) for r in ("linear", "published"))
    assert not torch.equal(linear, published)
    torch.testing.assert_close(linear, published, rtol=0, atol=0.2)


def test_prior_of_presence_falls_to_its_floor_and_stays():
    model = small(prior_decay=0.1, prior_floor=0.02)
    for step, prior in ((0, 1.0), (10, math.exp(-1)), (39, math.exp(-3.9)), (40, 0.02), (10**6, 0.02)):
        logs = model.schedule(step)
        assert math.exp(logs["log_prior"]) == pytest.approx(prior, rel=1e-5), step
        assert math.exp(logs["log_absent"]) == pytest.approx(1 - prior, rel=1e-5, abs=1e-8), step
    published = log_presence_prior(2_000, GmairConfig().prior_decay, GmairConfig().prior_floor)
    assert math.exp(published["log_prior"]) == pytest.approx(6e-6, rel=1e-3)


def test_the_presence_term_uses_the_prior_of_its_step():
    model = small(gate_cells=0, warmup_images=0, prior_decay=0.1, prior_floor=0.02).train()
    images = pictures()
    prob = model.infer_cells(images).presence_prob
    for step, prior in ((10, math.exp(-1)), (500, 0.02)):
        expected = kl_divergence(Bernoulli(prob), Bernoulli(torch.tensor(prior))).sum(1).mean()
        assert float(model.training_step(images, step)["pres"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_mixture_gets_its_gradient_late():
    model = small(detach_steps=50, mixture_start=0).train()
    for step, learns in ((49, False), (50, True)):
        model.zero_grad()
        model.training_step(pictures(), step)["what"].backward()
        assert (model.prior_mean.weight.grad is not None) == learns


def test_before_gating_a_step_uses_the_first_images_of_the_batch():
    model = small(warmup_images=3, gate_step=10, gate_cells=4).train()
    used, infer = [], model.infer_cells
    model.infer_cells = lambda images: (used.append(images), infer(images))[1]
    images = pictures(5)
    for step, n in ((9, 3), (10, 5)):
        model.training_step(images, step)
        assert torch.equal(used[-1], images[:n])


def test_phases_begin_and_end_at_their_steps():
    model = small(warmup_images=1, gate_step=10, gate_cells=4, overlap=0.5, overlap_steps=20, mixture_start=0)
    phases = {step: model.phase(step) for step in (0, 9, 10, 11, 19, 20, 500)}
    assert [step for step, phase in phases.items() if phase.warmup] == [0, 9]
    assert [step for step, phase in phases.items() if phase.gated] == [10, 11, 19, 20, 500]
    assert [step for step, phase in phases.items() if phase.overlapping] == [0, 9, 10, 11, 19]
    model.train()
    assert (
        "overlap" in model.training_step(pictures(), 19),
        "overlap" in model.training_step(pictures(), 20),
    ) == (
        True,
        False,
    )
    never = small(warmup_images=0, gate_cells=0, overlap=0.0)
    assert not any(never.phase(step)[:3] != (False, False, False) for step in (0, 10, 500))


def test_without_clamp_presence_falls_to_the_floor_of_its_prior_and_learns_there():
    model = small(clamp=False, where_norm=0).eval()
    with torch.no_grad():
        model.presence_head[-1].bias.fill_(-14)
    cells = model.infer_cells(pictures())
    assert cells.presence_logit.max() < -10.5
    presence_kl(cells.presence_prob, 6e-6).sum().backward()
    assert model.presence_head[-1].bias.grad.abs().max() > 0


def test_with_clamp_what_networks_say_is_limited():
    for raw, limit in ((-1e4, -10), (1e4, 10)):
        model = small(where_norm=0, clamp=True).eval()
        with torch.no_grad():
            for head in (model.presence_head, model.where_head, model.depth_head):
                head[-1].bias.fill_(raw)
            cells = model.infer_cells(pictures())
        for part in (cells.presence_logit, cells.where_mean, cells.depth_mean):
            assert (part == limit).all()
        deviation = positive(torch.tensor(float(limit)))
        for part in (cells.where_std, cells.depth_std):
            torch.testing.assert_close(part, deviation.expand_as(part))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_parameter_gets_a_finite_gradient(channels):
    model = small(channels, detach_steps=0, mixture_start=0, presence="relaxed").train()
    sum(model.training_step(pictures(channels=channels), 200).values()).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_heads_as_one_convolution_are_the_heads(layers):
    """Values and gradients."""
    torch.manual_seed(0)
    heads = torch.nn.ModuleList(networks.head(6, 8, layers, out) for out in (1, 2, 8))
    features = torch.randn(2, 6, 4, 5, requires_grad=True)
    joined = networks.run_heads(list(heads), features)
    plain = torch.cat([head(features).flatten(2).transpose(1, 2) for head in heads], -1)
    torch.testing.assert_close(joined, plain, rtol=1e-4, atol=1e-5)
    weight, inputs = torch.randn_like(plain), [features, *heads.parameters()]
    found, expected = (torch.autograd.grad((out * weight).sum(), inputs) for out in (joined, plain))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# The paper protocol: facts of the published code


def paper(data: str = "multimnist", channels: int = 1) -> Gmair:
    torch.manual_seed(0)
    config = build(GmairConfig, "gmair", Gmair.settings("paper", data))
    return Gmair(config, SceneShape(channels, 128, 128))


def test_paper_has_as_many_parameters_as_published():
    assert sum(p.numel() for p in paper().parameters()) == 15_968_759


def test_paper_trains_as_published():
    """Steps are the paper's; the rest is that of the published configurations of both data sets."""
    for data, channels, rate in (("multimnist", 1, 1e-4), ("fruit2d", 3, 5e-5), ("fruit2d-sim", 3, 5e-5)):
        model = paper(data, channels)
        c = model.config
        assert (c.steps, c.batch_size, c.lr_end, c.clip_norm) == (440_000, 16, 1, 0)
        assert (c.base_box, c.glimpse, c.what_dim, c.recon, c.temperature) == (72, 32, 256, 8, 1)
        assert (c.gate_cells, c.warmup_images, c.mixture_start) == (0, 0, 0)
        (adam,) = model.optimizers()
        assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.9, 0.999), 1e-8)
        rates = {id(p): group["lr"] for group in adam.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            own = name.startswith(("cat_encoder.", "what_encoder.", "decoder."))
            assert rates[id(parameter)] == (rate if own else 1e-4), name


def test_paper_prior_of_presence_is_the_published_one():
    """max(exp(-0.01 step), 6e-6)"""
    model = paper()
    for step, prior in ((0, 1.0), (1_000, math.exp(-10)), (10_000, 6e-6), (100_000, 6e-6)):
        logs = model.schedule(step)
        assert logs["log_prior"] == pytest.approx(math.log(prior))
        assert logs["log_absent"] == pytest.approx(math.log(1 - prior + 1e-9))


def test_paper_phases_end_when_published():
    """The published code compares the step with <=."""
    model, fruit = paper(), paper("fruit2d", 3)
    assert [model.phase(step).overlapping for step in (0, 5_000, 5_001)] == [True, True, False]
    assert not fruit.phase(0).overlapping
    detached, learned = WhatPrior.DETACHED, WhatPrior.LEARNED
    assert [model.phase(step).what_prior for step in (0, 2_000, 2_001)] == [detached, detached, learned]
    assert [fruit.phase(step).what_prior for step in (0, 1)] == [detached, learned]


def test_paper_starts_from_the_published_weights():
    model = paper()
    trunk, first, _, _, up = model.backbone[:5]
    for convolution in [m for m in trunk.modules() if isinstance(m, torch.nn.Conv2d)]:
        bound = convolution.weight[0].numel() ** -0.5  # torch's own: even up to it
        assert 0.95 * bound < convolution.weight.abs().max() <= bound
    assert first.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    half = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(up.weight[:, 0], (half[:, None] * half).expand(128, 4, 4))
    assert up.weight[:, 1:].abs().max() <= (128 * 16) ** -0.5


def test_paper_repeats_the_border_in_glimpses_and_paints_as_published():
    model = paper().eval()
    assert (model.config.renderer, model.config.glimpse_outside, model.config.presence) == (
        "published",
        "border",
        "mean",
    )
    beyond = torch.tensor([[[128.0, 0, 140, 12]]])
    assert (model.glimpses(torch.ones(1, 1, 128, 128), beyond) == 1).all()
    assert small().glimpses(torch.ones(1, 1, 32, 32), beyond).abs().max() == 0


@pytest.mark.parametrize("protocol", ["demo", "small", "paper"])
@pytest.mark.parametrize("data", ["fruit2d", "fruit2d-sim"])
def test_fruit_has_nine_clusters_and_as_many_cells_as_objects(protocol, data):
    settings = Gmair.settings(protocol, data)
    assert settings["clusters"] == 9
    assert settings["overlap"] == 0
    assert settings.get("gate_cells", 0) == (0 if protocol == "paper" else 36)


def test_paper_architecture_is_tables_3_to_6():
    model = Gmair(GmairConfig(), SceneShape(3, 128, 128))
    assert model.grid == (16, 16)
    features = model.backbone(torch.rand(2, 3, 128, 128))
    assert features.shape == (2, 64, 16, 16)
    assert model.decoder(torch.randn(5, 256)).shape == (5, 4, 32, 32)
    assert [m.out_features for m in model.cat_encoder if isinstance(m, torch.nn.Linear)] == [
        512,
        512,
        512,
        10,
    ]
    table5 = Gmair(GmairConfig(encoder_widths="128-256-512"), SceneShape(3, 128, 128))
    assert [m.out_features for m in table5.what_encoder if isinstance(m, torch.nn.Linear)] == [
        128,
        256,
        512,
        512,
    ]


def test_what_is_watched_is_the_number_of_objects_and_how_evenly_clusters_are_used():
    model = small(clusters=4, presence_bias=8, warmup_images=0)
    assert model.watch() == {}
    last = model.cat_encoder[-1]
    for bias, evenly in (([0.0, 0, 0, 0], 1), ([20.0, 20, 0, 0], 0.5), ([20.0, 0, 0, 0], 0)):
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor(bias))
        model.train().training_step(pictures(), 0)
        assert model.watch()["objects"] == 16
        assert model.watch()["cluster_usage"] == pytest.approx(evenly, abs=1e-3)
    few = small(presence_bias=-8)
    few.train().training_step(pictures(), 0)
    assert few.watch()["objects"] == 0


# Detection


def test_detection_is_deterministic_and_each_image_stands_alone():
    model = small().eval()
    images = pictures(6)
    with torch.no_grad():
        together, again = model.detect(images), model.detect(images)
        alone = [model.detect(image[None]) for image in images]
    assert torch.equal(together.boxes, again.boxes)
    for i, one in enumerate(alone):
        mine = together.image == i
        order, other = together.scores[mine].argsort(), one.scores.argsort()
        torch.testing.assert_close(together.boxes[mine][order], one.boxes[other], rtol=1e-4, atol=1e-3)
        assert torch.equal(together.clusters[mine][order], one.clusters[other])
        torch.testing.assert_close(together.what[mine][order], one.what[other], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        objects = model.infer_modes(images)
    torch.testing.assert_close(objects.cat, objects.cat_logits.softmax(-1))
    torch.testing.assert_close(objects.what, objects.what_mean)


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_are_cut_to_what_is_bright_in_their_glimpses(channels):
    found = []
    for trim in (0.2, 0.0):
        model = small(channels, trim=trim, trim_edges="glimpse", base_box=12).eval()
        last = model.decoder.layers[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.view(-1, 16, 16)[:channels].fill_(-8)  # colour is dark
            last.bias.view(-1, 16, 16)[:channels, 3:5, 2:7] = 8  # but in 2 rows and 5 columns
            found.append(model.detect(pictures(6, channels)))
    cut, whole = found
    inside = ((whole.boxes > 0) & (whole.boxes < 32)).all(1)
    assert inside.sum() > 10
    assert torch.equal(cut.scores, whole.scores)  # the same objects in the same order
    x0, y0, x1, y1 = whole.boxes[inside].unbind(1)
    w, h = (x1 - x0) / 16, (y1 - y0) / 16
    expected = torch.stack([x0 + 2 * w, y0 + 3 * h, x0 + 7 * w, y0 + 5 * h], 1)
    torch.testing.assert_close(cut.boxes[inside], expected, rtol=1e-4, atol=1e-3)


def test_boxes_lie_inside_the_image():
    model = small(base_box=60).eval()
    with torch.no_grad():
        boxes = model.detect(pictures(6)).boxes
    assert boxes.min() >= 0
    assert boxes.max() <= 32
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_a_batch_of_one_trains():
    model = small().train()
    assert torch.isfinite(sum(model.training_step(pictures(1), 0).values()))


@pytest.mark.slow
def test_it_learns_ten_images_by_heart():
    model = small(recon=16, gate_step=0, warmup_images=0).train()
    images = pictures(10)
    (optimizer,) = model.optimizers()
    first = last = 0.0
    for step in range(80):
        loss = model.training_step(images, step)["recon"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    assert last < 0.6 * first


# The start of the mixture


def two_kinds(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one object each and their kind: dark and bright ones in turn."""
    kinds = torch.arange(n) % 2
    images = torch.zeros(n, 1, 32, 32)
    gen = torch.Generator().manual_seed(4)
    for image, kind in zip(images, kinds.tolist(), strict=True):
        level = 0.2 + 0.7 * kind + 0.05 * float(torch.rand(1, generator=gen))
        image[:, 9:23, 9:23] = level
    return images, kinds


def spread_model(**options) -> Gmair:
    """A model whose cells are all present and whose encoder spreads its latents: brightness separates them."""
    model = small(presence_bias=9, **options).eval()
    with torch.no_grad():
        model.what_encoder[-1].weight[:8].mul_(20)  # means
        model.what_encoder[-1].weight[8:].zero_()  # deviations of 0.31: every dimension is used
        model.what_encoder[-1].bias[8:].fill_(-1.0)
    return model


def glimpses_of(model: Gmair, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Glimpses and what means of the four cells in the middle, which all see the object: [n * 4, ...]."""
    middle = torch.tensor([5, 6, 9, 10]).expand(len(images), 4)
    with torch.no_grad():
        objects = model.infer_objects(images, model.infer_cells(images), middle, sample=False)
    return crop(images, objects.boxes, model.config.glimpse).flatten(2).flatten(
        0, 1
    ), objects.what_mean.flatten(0, 1)


def test_the_mixture_starts_at_what_the_encoder_separates():
    """After the start components and cat-encoder tell the two kinds apart, without labels."""
    model = spread_model(clusters=2)
    images, kinds = two_kinds(120)
    kinds = kinds.repeat_interleave(4)
    before = model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    torch.manual_seed(0)
    assert start_mixture(model, images)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    prior = {"prior_mean.weight", "prior_mean.bias", "prior_std.weight", "prior_std.bias"}
    assert changed == prior | {"start_objects"} | {n for n in before if n.startswith("cat_encoder.")}

    glimpses, means = glimpses_of(model, images)
    centres = model.prior_mean(torch.eye(2))  # [2, A]
    stds = positive(model.prior_std(torch.eye(2)))
    log_prob = Normal(centres[:, None], stds[:, None]).log_prob(means).sum(-1)  # [2, m]
    with torch.no_grad():
        cat = model.cat_encoder(glimpses).softmax(-1)
    for found in (log_prob.argmax(0), cat.argmax(-1)):
        right = (found == kinds).float().mean()
        assert max(right, 1 - right) > 0.95
    confidence = cat.amax(-1).mean()
    assert confidence > 0.95  # 400 steps of fitting; after few it is near one half


def test_the_prior_after_the_start_covers_whole_posteriors():
    """The deviation of a component counts the posteriors' variances: with one cluster, it is that of the mixture."""
    model = spread_model(clusters=1)
    images, _ = two_kinds(40)
    mean, std = gmair_mixture.present_objects(model, images)[1:3]
    assert start_mixture(model, images)
    torch.testing.assert_close(model.prior_mean(torch.eye(1))[0], mean.mean(0), rtol=1e-3, atol=1e-3)
    variance = mean.var(0, unbiased=False) + std.square().mean(0)
    torch.testing.assert_close(
        positive(model.prior_std(torch.eye(1)))[0].square(), variance.clamp(min=1e-4), rtol=2e-2, atol=1e-3
    )


def test_at_its_milestone_the_mixture_is_started():
    model = spread_model(clusters=2, mixture_start=30)
    assert model.milestones() == (30,)
    assert small(mixture_start=0).milestones() == ()
    before = model.prior_mean.weight.clone()
    model.at_milestone(two_kinds(40)[0], 30)
    assert not torch.equal(before, model.prior_mean.weight)
    assert [model.phase(step).what_prior for step in (29, 30)] == [WhatPrior.STANDARD, WhatPrior.LEARNED]


def test_the_mixture_is_left_alone_when_there_is_nothing_to_start_from():
    model = small(presence_bias=-9)
    before = model.prior_mean.weight.clone()
    assert not start_mixture(model, pictures(4))
    assert torch.equal(before, model.prior_mean.weight)


def test_a_mixture_that_was_not_started_is_a_warning():
    assert Detector.warnings(small()) == []
    assert small(mixture_start=0).warnings() == []
    few = small(presence_bias=-9, clusters=4, mixture_start=20, steps=100)
    few.at_milestone(pictures(4), 20)
    assert few.warnings() == [
        "the mixture was not started at step 20: 0 objects were present, and 4 clusters need 40; "
        "it trained on from its random first weights"
    ]
    short = small(mixture_start=20, steps=20)
    (said,) = short.warnings()
    assert "mixture_start=20 is not below steps=20" in said
    started = spread_model(clusters=2, mixture_start=20, steps=100)
    started.at_milestone(two_kinds(40)[0], 20)
    assert started.warnings() == []
    resumed = small(clusters=2, mixture_start=20, steps=100)  # from a checkpoint after the milestone
    resumed.load_state_dict(started.state_dict())
    assert resumed.warnings() == []


def held_model(**options: object) -> Gmair:
    """One whose mixture is started by k-means on the glimpses of two kinds of objects, and held."""
    model = spread_model(clusters=2, mixture_start=1, start_with="kmeans", hold_clusters=True, **options)
    torch.manual_seed(0)
    model.at_milestone(two_kinds(120)[0], 1)
    return model


def test_the_mixture_starts_with_the_clusters_of_a_clusterer():
    model = held_model()
    images, _ = two_kinds(60)
    objects = gmair_mixture.present_objects(model, images)
    given = Objects(objects.squares, objects.presence, objects.what_mean)
    clusters = gmair_mixture.assigned(model.clusterer, given)
    with torch.no_grad():
        said = model.cat_encoder(objects.glimpses).argmax(1)
    assert (said == clusters).float().mean() > 0.95
    assert set(clusters.tolist()) == {0, 1}
    for cluster in range(2):
        centre = objects.what_mean[clusters == cluster].mean(0)
        prior = model.prior_mean(torch.eye(2))
        assert (prior - centre).norm(dim=1).argmin() == cluster
    assert model.warnings() == []


def test_the_fit_of_a_clusterer_leaves_the_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    """numba, which a neighbour embedding uses, sets it for the whole process."""
    fit, before = KMeans.fit, torch.get_num_threads()

    def with_threads(self: KMeans, objects: Objects) -> None:
        fit(self, objects)
        torch.set_num_threads(before + 1)

    monkeypatch.setattr(KMeans, "fit", with_threads)
    held_model()
    assert torch.get_num_threads() == before


def test_held_clusters_learn_from_the_clusterer_alone():
    model = held_model()
    images, _ = two_kinds(16)

    def gradients(step: int, keep: Callable[[str], bool]) -> float:
        model.zero_grad()
        torch.manual_seed(1)
        terms = model.training_step(images, step)
        sum(term for name, term in terms.items() if keep(name)).backward()
        return sum(float(p.grad.abs().sum()) for p in model.cat_encoder.parameters() if p.grad is not None)

    assert gradients(1, lambda name: name != "hold") == 0
    assert model.prior_mean.weight.grad is not None
    assert gradients(1, lambda name: name == "hold") > 0
    assert gradients(0, lambda name: True) > 0  # before the start it learns from the ELBO
    assert "hold" not in model.training_step(images, 0)


def test_the_hold_loss_is_the_cross_entropy_to_the_clusterer():
    model = held_model()
    images, _ = two_kinds(4)
    cells = model.infer_cells(images)
    chosen = top_cells(cells.presence_prob, 0)
    objects = model.infer_objects(images, cells, chosen, sample=True)
    prob = take_cells(cells.presence_prob, chosen)
    loss = gmair_mixture.hold_loss(model, images, objects, prob)
    total = torch.zeros(4)
    ranked = sorted(((float(prob[i, j]), i, j) for i in range(4) for j in range(prob.shape[1])), reverse=True)
    for presence, i, j in ranked[: gmair_mixture.HELD]:
        if presence < 0.5:
            continue
        box = model.cut_boxes(
            objects.boxes[i, j][None, None], prob[i, j][None, None], objects.what_mean[i, j][None, None]
        )
        square = Cut(16, 0.0).squares(box)
        glimpse = crop(images[i : i + 1], square, 16)[0].clamp(0, 1)
        one = Objects(glimpse, prob[i, j][None], objects.what_mean[i, j][None])
        cluster = gmair_mixture.assigned(model.clusterer, one)
        total[i] += torch.nn.functional.cross_entropy(objects.cat_logits[i, j][None], cluster)
    assert total.sum() > 0
    torch.testing.assert_close(loss, total)


def test_a_held_clusterer_is_in_the_state_and_in_no_optimiser():
    model = held_model()
    again = small(presence_bias=9, clusters=2, mixture_start=1, start_with="kmeans", hold_clusters=True)
    again.eval().load_state_dict(model.state_dict())
    images, _ = two_kinds(8)
    terms = []
    for one in (model, again):
        torch.manual_seed(3)
        terms.append(one.training_step(images, 5))
    assert terms[0].keys() == terms[1].keys()
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])
    taught = {id(p) for o in model.optimizers() for g in o.param_groups for p in g["params"]}
    assert taught == {id(p) for name, p in model.named_parameters() if not name.startswith("clusterer.")}
    assert not [p for p in model.clusterer.parameters() if p.requires_grad]


def test_a_start_with_a_clusterer_has_its_code_in_the_key():
    registry = load_plugins()
    plain, with_kmeans = (
        matrix(registry, ["gmair"], ["multimnist"], [0], protocol("demo"), {"gmair": given})[0].training
        for given in ({}, {"start_with": "kmeans"})
    )
    assert "uses" not in plain.identity
    assert with_kmeans.identity["uses"] == ["kmeans"]
    more = with_kmeans.code["model_code"].keys() - plain.code["model_code"].keys()
    assert "objbench_plugins/kmeans/model.py" in more
    assert with_kmeans.identity["model_code"] != plain.identity["model_code"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hold_clusters": True}, "hold_clusters needs a clusterer to hold to"),
        ({"hold_clusters": True, "start_with": "kmeans", "mixture_start": 0}, "mixture_start above 0"),
        ({"start_with": "kmean", "mixture_start": 5}, "no clusterer named 'kmean'; did you mean 'kmeans'?"),
    ],
)
def test_a_start_that_cannot_be_is_refused(options: dict[str, object], says: str):
    with pytest.raises((ValueError, UsageError), match=re.escape(says)):
        small(**options)


def test_objects_that_are_not_finite_start_no_mixture():
    model = spread_model(clusters=2)
    with torch.no_grad():
        model.what_encoder[-1].bias[0] = math.nan
    assert not start_mixture(model, two_kinds(40)[0])


def test_inverse_softplus():
    x = torch.tensor([1e-3, 0.5, 3.0, 30.0])
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(x)), x, rtol=1e-4, atol=1e-6)


# What cannot work


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("encoder_widths", "a-b", "encoder_widths=a-b is not like"),
        ("decoder", "conv", "decoder=conv makes glimpses of 32"),
        ("backbone", "vgg", "not one of"),
        ("clusters", "0", "gmair.clusters=0 is out of range"),
        ("cluster", "3", "did you mean 'clusters'"),
    ],
)
def test_bad_options_are_one_clear_line(key, value, says):
    with pytest.raises(UsageError, match=says):
        small(**{key: value})


@pytest.mark.parametrize(
    ("backbone", "height", "says"),
    [
        ("small", 30, "gmair.backbone=small needs image sides that are multiples of 8, but images are 30x32"),
        (
            "resnet18",
            40,
            "gmair.backbone=resnet18 needs image sides that are multiples of 32, .*40x32 .small needs .* 8",
        ),
    ],
)
def test_an_image_that_a_backbone_cannot_do_is_refused(backbone, height, says):
    config = dataclasses.replace(small().config, backbone=backbone)
    with pytest.raises(UsageError, match=says):
        Gmair(config, SceneShape(1, height, 32))


def test_a_batch_that_the_backbone_cannot_normalise_is_refused():
    config = dataclasses.replace(small().config, backbone="resnet18", batch_size=1)
    with pytest.raises(UsageError, match="batch_size=1 needs images larger than 32x32"):
        Gmair(config, SceneShape(1, 32, 32))
    for batch, width in ((2, 32), (1, 64)):
        model = Gmair(dataclasses.replace(config, batch_size=batch), SceneShape(1, 32, width)).train()
        terms = model.training_step(torch.rand(batch, 1, 32, width), 0)
        assert torch.stack(list(terms.values())).isfinite().all()


@pytest.mark.parametrize("backbone", list(networks.MULTIPLES))
def test_an_image_that_a_backbone_can_do_is_taken(backbone):
    side = networks.MULTIPLES[backbone]
    config = dataclasses.replace(small().config, backbone=backbone)
    model = Gmair(config, SceneShape(1, side, 2 * side)).eval()
    with torch.no_grad():
        assert model.infer_cells(torch.rand(2, 1, side, 2 * side)).presence_prob.shape == (2, model.cells)
