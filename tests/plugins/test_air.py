"""AIR: its loss against a plain reference, the gradient of discrete presence against all outcomes, its contract."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from objbench.errors import UsageError
from objbench.options import build
from objbench.scenes import SceneShape
from objbench_plugins.air import losses
from objbench_plugins.air.model import Air
from objbench_plugins.air.reference import Noise, negative_elbo

TINY = {
    "objects": 3,
    "encoder": "none",
    "hidden": 7,
    "what_dim": 4,
    "glimpse": 5,
    "encoder_widths": "9-8",
    "steps": 100,
    "count_steps": 50,
}


def air(shape: tuple[int, int, int] = (1, 11, 13), **options: Any) -> Air:
    torch.manual_seed(0)
    settings = Air.settings("demo", "multimnist") | TINY
    return Air(build(Air.Config, "air", settings, options), SceneShape(*shape))


@pytest.mark.parametrize("look", ["image", "difference"])
def test_the_loss_is_that_of_the_plain_reference(look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = air(look=look).double()
    c = model.config
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.4)
    images = torch.rand(2, 1, 11, 13).double()
    normal = iter(torch.randn(c.objects, 2, 3 + c.what_dim).double())
    uniform = torch.rand(c.objects, 2).double().clamp(1e-6, 1 - 1e-6)
    # In each step a model draws presence, where and what, in this order.
    drawn = [part for row in normal for part in row.split([3, c.what_dim], 1)]
    normals, uniforms = iter(drawn), iter(uniform)
    monkeypatch.setattr(torch, "randn_like", lambda like: next(normals))
    monkeypatch.setattr(torch, "rand_like", lambda like: next(uniforms))
    terms = {name: float(term.detach()) for name, term in model.training_step(images, 20).items()}
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    noise = [
        Noise(
            torch.logit(uniform[:, image]).numpy(),
            np.stack([part[image].numpy() for part in drawn[::2]]),
            np.stack([part[image].numpy() for part in drawn[1::2]]),
        )
        for image in range(2)
    ]
    expected = [
        negative_elbo(
            picture[0].numpy(), of_image, weights, glimpse_side=c.glimpse, difference=look == "difference",
            temperature=c.temperature, presence_bias=c.presence_bias, colour_bias=c.colour_bias, sigma=c.sigma,
            scale=(math.log(c.scale_prior / (1 - c.scale_prior)), c.scale_prior_std),
            log_odds=losses.count_log_odds(20, c.count_start, c.count_end, c.count_steps),
        )
        for picture, of_image in zip(images, noise, strict=True)
    ]  # fmt: skip
    assert set(terms) == set(expected[0])
    for name, term in terms.items():
        assert term == pytest.approx(np.mean([e[name] for e in expected]), rel=1e-6), name


def test_the_gradient_of_discrete_presence_is_that_of_the_expected_cost() -> None:
    """Over all outcomes of three choices, weighed by their probability; any baseline leaves it as it is."""
    torch.manual_seed(0)
    steps = 3
    logit = torch.randn(1, steps, dtype=torch.float64, requires_grad=True)
    here, reached = torch.rand(2, steps, dtype=torch.float64)  # of a present step, of a step that is asked
    painted = torch.rand(2**steps, dtype=torch.float64)  # a cost of each picture

    def outcomes() -> Any:
        for bits in itertools.product([1.0, 0.0], repeat=steps):
            if any(b > a for a, b in itertools.pairwise(bits)):
                continue  # after the first 0 nothing is chosen
            chosen = torch.tensor([bits], dtype=torch.float64)
            asked = torch.cat([torch.ones(1, 1).double(), chosen[:, :-1]], 1)
            log_prob = torch.where(
                chosen > 0, torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
            )
            recon = painted[int(sum(bits))][None]
            yield chosen, asked, (asked * log_prob).sum().exp(), recon, here * chosen, reached * asked

    total = sum(chance * (recon.sum() + a.sum() + b.sum()) for _, _, chance, recon, a, b in outcomes())
    (expected,) = torch.autograd.grad(total, logit)
    for baseline in (torch.zeros(1, steps).double(), torch.tensor([[0.3, -2.0, 5.0]]).double()):
        terms = sum(
            chance.detach()
            * losses.score_function(losses.downstream(recon, a, b), baseline, logit, chosen, asked).sum()
            for chosen, asked, chance, recon, a, b in outcomes()
        )
        (found,) = torch.autograd.grad(terms, logit)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_paper_samples_presence_of_0_and_1_and_learns_its_baseline_faster() -> None:
    assert Air.settings("paper", "anything") == {}
    model = air(estimator="nvil", optimizer="rmsprop", count_end=1e-3, lr=1e-4)
    assert [o.param_groups[0]["lr"] for o in model.optimizers()] == [1e-4, 1e-3]
    found, _ = model.infer(torch.rand(4, 1, 11, 13), sample=True)
    assert set(found.chosen.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(found.asked[:, 1:], found.presence[:, :-1])
    terms = model.training_step(torch.rand(4, 1, 11, 13), 0)
    assert set(terms) == {"recon", "presence", "where", "what", "score", "baseline"}
    sum(terms.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_what_the_baseline_learns_does_not_reach_the_model() -> None:
    model = air(estimator="nvil", baseline_lr=1e-3)
    terms = model.training_step(torch.rand(4, 1, 11, 13), 0)
    own = {id(p) for p in model.baseline.parameters()}
    terms["baseline"].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached
    assert reached <= {name for name, p in model.named_parameters() if id(p) in own}


def test_odds_of_one_object_more_fall_evenly_in_their_logarithm() -> None:
    model = air(count_start=1e6, count_end=1e-2, count_steps=100)
    for step, log10 in ((0, 6), (50, 2), (100, -2), (1000, -2)):
        now = model.schedule(step)
        assert math.exp(now["log_more"]) + math.exp(now["log_stop"]) == pytest.approx(1)
        assert now["log_more"] - now["log_stop"] == pytest.approx(log10 * math.log(10), abs=1e-9)
    assert losses.log_sigmoid(800.0) == 0.0
    assert losses.log_sigmoid(-800.0) == -800.0


def test_scores_never_rise_from_step_to_step_and_boxes_have_the_proportions_of_the_image() -> None:
    model = air((1, 16, 32), trim=0).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 1.0)
    images = torch.rand(3, 1, 16, 32)
    with torch.no_grad():
        boxes = model.infer(images, sample=False)[0].boxes
        found = model.detect(images)
    sides = boxes[..., 2:] - boxes[..., :2]
    torch.testing.assert_close(sides[..., 0], 2 * sides[..., 1])
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert (middle >= 0).all()
    assert (middle <= torch.tensor([32.0, 16.0])).all()
    assert not found.fault()
    for image in range(3):
        scores = found.scores[found.image == image]
        assert (scores.diff() <= 0).all()


@pytest.mark.parametrize("shape", [(3, 35, 50), (1, 4, 7)])
def test_images_of_any_size_go_through_the_convolutions(shape: tuple[int, int, int]) -> None:
    model = air(shape, encoder="convolutions")
    assert model.reconstruct(torch.rand(2, *shape)).shape == (2, *shape)


def test_what_is_painted_is_taken_off_what_a_difference_sees() -> None:
    model, seen = air(look="difference"), []
    encoder = model.encoder
    model.encoder = torch.nn.Sequential(encoder)
    model.encoder.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    images = torch.rand(2, 1, 11, 13)
    _, canvas = model.infer(images, sample=False)
    assert len(seen) == 3
    assert torch.equal(seen[0], images)
    assert (seen[2] <= seen[1]).all()  # glimpses are not negative
    assert (images - seen[2] <= canvas + 1e-6).all()


def test_odds_that_would_rise_are_refused() -> None:
    with pytest.raises(UsageError, match="odds only fall"):
        air(count_start=1e-6)
