"""GMAIR: every term against an independent computation, gating and painting against the plain way."""

import dataclasses
import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from objbench.errors import UsageError
from objbench.latents import categorical_kl, gumbel_softmax, normal_kl
from objbench.options import build
from objbench.scenes import SceneShape
from objbench_plugins.gmair.config import GmairConfig
from objbench_plugins.gmair.mixture import inverse_softplus, start_mixture
from objbench_plugins.gmair.model import EPS, Gmair, bernoulli_kl, positive


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
    return bernoulli_kl(chance, math.log(prior + EPS), math.log(1 - prior + EPS))


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
    prior = model.what_prior(cat, step=10**6)
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
    model = small(presence="mean", mixture_start=0, gate_cells=0, first_batch=0).train()
    images, step = pictures(), 7
    torch.manual_seed(5)
    terms = model.training_step(images, step)

    torch.manual_seed(5)
    c = model.config
    cells = model.infer_cells(images)
    where = cells.where_mean + cells.where_std * torch.randn_like(cells.where_mean)
    depth = cells.depth_mean + cells.depth_std * torch.randn_like(cells.depth_mean)
    objects = model.infer_objects(images, cells.presence, model.boxes(where), depth, sample=True)
    colour, alpha = model.decode(objects.what)
    n, k = cells.presence.shape
    prior = math.exp(-0.01 * step)
    expected = dict.fromkeys(terms, 0.0)
    from objbench.spatial.reference import canvases

    shown = alpha * cells.presence[..., None, None, None]
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
            q = cells.presence[i, j]
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
    kept = model.chosen_cells(presence, 10)
    assert set(kept[0].tolist()) == set(presence[0].argsort(descending=True)[:3].tolist())
    assert model.chosen_cells(presence, 9).shape == (2, 16)
    torch.manual_seed(0)
    gated = model.train().training_step(pictures(), 10)["pres"]
    ungated = small(gate_cells=0).train().training_step(pictures(), 10)["pres"]
    torch.testing.assert_close(gated, ungated)


def test_the_published_renderer_agrees_where_interpolation_does_nothing():
    """Glimpse pixels that fall on image pixels: multiplying before or after interpolation is the same."""
    linear, published = small(), small(renderer="published")
    torch.manual_seed(0)
    boxes = torch.tensor([[[0.0, 0, 16, 16], [8, 8, 24, 24]]])
    colour, alpha = torch.rand(1, 2, 1, 16, 16), torch.rand(1, 2, 1, 16, 16)
    objects = linear.infer_objects(
        pictures(1), torch.tensor([[0.9, 0.4]]), boxes, torch.tensor([[0.3, -1.0]]), False
    )
    image, over = linear.render(objects, colour, alpha, overlapping=True)
    image_published, over_published = published.render(objects, colour, alpha, overlapping=True)
    torch.testing.assert_close(image, image_published, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(over, over_published, rtol=1e-4, atol=1e-5)


def test_prior_of_presence_falls_to_its_floor_and_mixture_gets_its_gradient_late():
    model = small(detach_steps=50, mixture_start=0).train()
    for step, learns in ((49, False), (50, True)):
        model.zero_grad()
        model.training_step(pictures(), step)["what"].backward()
        assert (model.prior_mean.weight.grad is not None) == learns


@pytest.mark.parametrize("channels", [1, 3])
def test_every_parameter_gets_a_finite_gradient(channels):
    model = small(channels, detach_steps=0, mixture_start=0, presence="relaxed").train()
    sum(model.training_step(pictures(channels=channels), 200).values()).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert torch.isfinite(p.grad).all(), name


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


def test_it_learns_ten_images_by_heart():
    model = small(recon=16, gate_step=0, first_batch=0).train()
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


def test_the_mixture_starts_at_what_the_encoder_separates():
    """Two kinds of objects whose what-latents differ: after the start two clusters tell them apart, unlabelled."""
    model = small(clusters=2, presence_bias=9).eval()
    dark, bright = pictures(60) * 0.2, pictures(60)
    with torch.no_grad():
        model.what_encoder[-1].weight.mul_(20)  # an encoder that spreads its latents
    assert start_mixture(model, torch.cat([dark, bright]))
    assert torch.isfinite(model.prior_mean.weight).all()
    assert (positive(model.prior_std(torch.eye(2))) > 0).all()
    assert (model.prior_mean.weight[:, 0] - model.prior_mean.weight[:, 1]).norm() > 0.1


def test_the_mixture_is_left_alone_when_there_is_nothing_to_start_from():
    model = small(presence_bias=-9)
    before = model.prior_mean.weight.clone()
    assert not start_mixture(model, pictures(4))
    assert torch.equal(before, model.prior_mean.weight)


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


def test_an_image_that_the_grid_does_not_divide():
    config = dataclasses.replace(small().config)
    with pytest.raises(ValueError, match="divide by 8"):
        Gmair(config, SceneShape(1, 30, 32))
