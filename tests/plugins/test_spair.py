"""SPAIR: wavefront against one cell after another, closed-form count prior against its loop, and the rest."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from objbench.errors import UsageError
from objbench.latents import bernoulli_kl, normal_kl
from objbench.options import build
from objbench.scenes import SceneShape
from objbench_plugins.spair import losses
from objbench_plugins.spair.config import SpairConfig
from objbench_plugins.spair.model import Objects, Spair
from objbench_plugins.spair.networks import Backbone
from objbench_plugins.spair.reference import PlainSpair, count_prior_plain
from objbench_plugins.spair.wavefront import wavefront

TINY = SpairConfig(
    what_dim=5,
    anchor=20,
    glimpse=8,
    backbone_width=8,
    features=6,
    carry=7,
    hidden=9,
    encoder_widths="12-10",
    where_frozen_steps=3,
)
SHAPE = SceneShape(1, 40, 52)


def model(shape=SHAPE, cls=Spair, **changes):
    torch.manual_seed(0)
    return cls(dataclasses.replace(TINY, **changes), shape)


def some_images(shape, n=3):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


# The wavefront


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("shape", [SceneShape(1, 40, 52), SceneShape(3, 24, 64), SceneShape(1, 64, 24)])
def test_wavefront_equals_one_cell_after_another(shape, by_hand, monkeypatch):
    """Values of every latent and gradients of every parameter, for the same noise."""
    monkeypatch.setattr(Spair, "by_hand", by_hand)
    fast, plain = model(shape), model(shape, PlainSpair)
    images = some_images(shape)
    noise = fast.noise(images)
    found, expected = fast.infer(images, noise), plain.infer(images, noise)
    for name, a, b in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    for out in (found, expected):
        weights = torch.Generator().manual_seed(2)
        sum((part * torch.randn(part.shape, generator=weights)).sum() for part in out).backward()
    unread = [name for name, p in plain.named_parameters() if p.grad is None]
    assert all(name.startswith("decoder") for name in unread)
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            scale = float(b.grad.abs().max())
            assert scale > 0, f"no gradient reaches {name}: the test shows nothing"
            torch.testing.assert_close(a.grad / scale, b.grad / scale, rtol=1e-5, atol=1e-5)


def test_a_whole_step_equals_the_plain_one():
    fast, plain = model(), model(cls=PlainSpair)
    images = some_images(fast.shape)
    totals = []
    for m in (fast, plain):
        torch.manual_seed(3)
        terms = m.training_step(images, 100)
        sum(terms.values()).backward()
        totals.append(terms)
    for name in totals[1]:
        torch.testing.assert_close(totals[0][name], totals[1][name], rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        scale = float(b.grad.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(a.grad / scale, b.grad / scale, rtol=1e-4, atol=1e-5)


def settled(encoder_widths="12-10", **changes):
    """A SPAIR whose logits lie at both sides of the limit of 10: there a gradient ends."""
    m = model(encoder_widths=encoder_widths, where_frozen_steps=0, **changes)
    with torch.no_grad():
        for net, factor in ((m.box_net, 120), (m.depth_net, 120), (m.presence_net, 20), (m.what_encoder, 20)):
            net[-1].weight *= factor
    return m


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.7, "presence_bias": 2.0}, {"encoder_widths": "12-9-8"}]
)
def test_a_front_by_hand_equals_the_one_that_torch_differentiates(changes, monkeypatch):
    """Loss and gradients of a whole step, in double precision, so that nothing hides in rounding."""
    results, calls, by_hand = [], [], Spair.infer_by_hand
    monkeypatch.setattr(Spair, "infer_by_hand", lambda *given: (calls.append(1), by_hand(*given))[1])
    monkeypatch.setattr(torch, "randn", partial(torch.randn, dtype=torch.float64))
    monkeypatch.setattr(torch, "rand", partial(torch.rand, dtype=torch.float64))
    for hand in (True, False):
        monkeypatch.setattr(Spair, "by_hand", hand)
        m = settled(**changes).double()
        images = some_images(m.shape).double()
        torch.manual_seed(3)
        cells = m.infer(images, m.noise(images))
        beyond = [x.abs() >= 10 for x in (cells.where_mean, cells.depth_mean, cells.presence_logit)]
        assert all(0.02 < x.double().mean() < 0.98 for x in beyond)
        torch.manual_seed(3)
        loss = sum(m.training_step(images, 100).values())
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in m.named_parameters()}))
    assert len(calls) == 2
    (loss, found), (plain_loss, expected) = results
    torch.testing.assert_close(loss, plain_loss, rtol=1e-12, atol=0)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0, f"no gradient reaches {name}: the test shows nothing"
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=1e-9, atol=1e-9, msg=name)


def test_detection_and_frozen_steps_take_the_plain_fronts(monkeypatch):
    calls = []
    monkeypatch.setattr(Spair, "infer_by_hand", lambda *given: calls.append(1))
    m = model()
    m.detect(some_images(m.shape))
    m.training_step(some_images(m.shape), TINY.where_frozen_steps - 1)
    assert calls == []


def test_painting_in_parts_equals_painting_at_once(monkeypatch):
    whole, parts = model(), model()
    images = some_images(whole.shape)
    noise = whole.noise(images)
    grads = []
    for m, limit in ((whole, 2**30), (parts, 1)):
        monkeypatch.setattr("objbench_plugins.spair.model.PAINTED_VALUES", limit)
        painted = m.render(m.infer(images, noise).objects)
        painted.square().sum().backward()
        grads.append((painted, [p.grad for p in m.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


def test_parts_hold_as_many_images_as_fit_the_limit(monkeypatch):
    m = model()
    images = some_images(m.shape, 5)
    row = m.cells * TINY.glimpse * 2 * m.shape.width  # colour and alpha of all glimpses of an image
    calls, part = [], m.render_part
    monkeypatch.setattr(m, "render_part", lambda few: (calls.append(len(few.presence)), part(few))[1])
    monkeypatch.setattr("objbench_plugins.spair.model.PAINTED_VALUES", 2 * row)
    with torch.no_grad():
        m.reconstruct(images)
    assert calls == [2, 2, 1]


def test_eleven_by_eleven_cells_are_31_fronts_of_every_cell_once():
    front = wavefront(11, 11)
    assert len(front.sizes) == 31
    assert sorted(front.order.tolist()) == list(range(121))
    assert front.order[front.place].tolist() == list(range(121))


def test_a_cell_reads_its_neighbours_and_no_later_cell():
    """What an image holds under one cell changes that cell and cells after it, never cells before."""
    m = model(SceneShape(1, 60, 60), stride=12).eval()
    features = torch.zeros(1, 25, 3 * TINY.hidden)
    images = torch.zeros(1, 1, 60, 60)
    base = with_features(m, images, features)
    features[0, 12] = 1
    changed = with_features(m, images, features)
    moved = ((base.context - changed.context).abs().amax(-1)[0] > 1e-7).reshape(5, 5)
    assert moved[2, 2]
    assert not moved[:2].any()
    assert not moved[2, :2].any()
    assert moved[2, 3]  # west is read
    assert moved[3, 1]  # north-east
    assert moved[3, 2]  # north
    assert moved[3, 3]  # north-west


def with_features(m, images, features):
    m.cell_features = lambda _: features
    with torch.no_grad():
        return m.infer(images)


# The count prior


@pytest.mark.parametrize("log_odds", [math.log(1e6), 0.3, math.log(0.0125)])
def test_count_prior_equals_its_loop(log_odds):
    gen = torch.Generator().manual_seed(4)
    share = torch.tensor([0.0, 0.02, 0.2, 0.5, 0.9, 1.0])[:, None]
    present = (torch.rand(6, 121, generator=gen) < share).double()
    log_p = losses.log_one_more(log_odds)
    torch.testing.assert_close(
        losses.count_prior(present, log_p), count_prior_plain(present, log_p), rtol=1e-9, atol=0
    )


def test_count_prior_by_enumeration():
    """p(z_i | z_<i) of the joint p(C) / binom(N, C), summed over all 2^5 outcomes."""
    cells, odds = 5, 0.7
    chance = odds / (1 + odds)
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * cells)
    count = outcomes.sum(1)
    ways = torch.tensor([math.comb(cells, int(c)) for c in count])
    joint = chance**count / ways
    joint = joint / joint.sum()
    found = losses.count_prior(outcomes, losses.log_one_more(math.log(odds)))
    for outcome, row in zip(outcomes, found, strict=True):
        for i in range(cells):
            same = (outcomes[:, :i] == outcome[:i]).all(1)
            expected = joint[same & (outcomes[:, i] == 1)].sum() / joint[same].sum()
            assert float(row[i]) == pytest.approx(float(expected), rel=1e-5)


def test_count_prior_stays_finite_where_odds_underflow():
    prior = losses.count_prior(torch.ones(1, 1024), losses.log_one_more(math.log(1e-6)))
    assert ((prior > 0) & (prior < 1)).all()


def test_count_odds_fall_tenfold_to_their_floor():
    assert losses.count_log_odds(0, 1e6, 0.0125, 1000) == pytest.approx(math.log(1e6))
    assert losses.count_log_odds(2000, 1e6, 0.0125, 1000) == pytest.approx(math.log(1e4), abs=1e-5)
    assert losses.count_log_odds(200_000, 1e6, 0.0125, 1000) == pytest.approx(math.log(0.0125))


# The loss


def test_normal_kl_is_the_known_one():
    mean, prior_mean = torch.randn(2, 50)
    std, prior_std = torch.rand(2, 50) + 0.1
    torch.testing.assert_close(
        normal_kl(mean, std, prior_mean, prior_std),
        kl_divergence(Normal(mean, std), Normal(prior_mean, prior_std)),
    )


def test_bernoulli_kl_is_the_known_one_and_finite_in_the_tails():
    logit, prior = torch.randn(50) * 4, torch.rand(50)
    torch.testing.assert_close(
        bernoulli_kl(logit, prior.log(), torch.log1p(-prior), exact_tail=True),
        kl_divergence(Bernoulli(logits=logit), Bernoulli(prior)),
    )
    tails = torch.tensor([-200.0, 200.0])
    assert bernoulli_kl(tails, math.log(1e-7), math.log1p(-1e-7), exact_tail=True).isfinite().all()


def test_the_terms_are_those_of_torch_distributions():
    m = model(count_start=2.0, count_floor=1.0, size_prior=0.2)
    images = some_images(m.shape)
    torch.manual_seed(5)
    terms = m.training_step(images, 7)
    torch.manual_seed(5)
    cells = m.infer(images, m.noise(images))
    size = math.log(0.2 / 0.8)
    where = kl_divergence(
        Normal(cells.where_mean, cells.where_std),
        Normal(torch.tensor([0, 0, size, size]), torch.tensor([1, 1, 0.5, 0.5])),
    )
    what = kl_divergence(Normal(cells.what_mean, cells.what_std), Normal(0.0, 1.0))
    depth = kl_divergence(Normal(cells.depth_mean, cells.depth_std), Normal(0.0, 1.0))
    for name, kl in (("where", where), ("what", what), ("depth", depth)):
        torch.testing.assert_close(terms[name], (cells.presence * kl).sum((1, 2)).mean())
    log_p = losses.log_one_more(math.log(0.1 ** (7 / 1000) + 1))
    prior = count_prior_plain(cells.presence[..., 0].detach().round(), log_p)
    presence = kl_divergence(Bernoulli(logits=cells.presence_logit[..., 0]), Bernoulli(prior.float()))
    torch.testing.assert_close(terms["pres"], presence.sum(1).mean())


def test_noisy_presence_kl_is_another_number():
    torch.manual_seed(6)
    clean = model(presence_kl="clean").training_step(some_images((1, 40, 52)), 7)
    noisy = model(presence_kl="noisy").training_step(some_images((1, 40, 52)), 7)
    assert (clean["pres"] - noisy["pres"]).abs().item() > 1e-3
    torch.testing.assert_close(clean["recon"], noisy["recon"])


def test_reconstruction_is_averaged_over_the_batch():
    """A batch that holds the same image twice costs what the image costs."""
    m = model()
    image = some_images(m.shape, 1)
    m.noise = lambda images: type(noise)(*(part.expand(len(images), -1, -1) for part in noise))
    noise = Spair.noise(m, image)
    one, two = m.training_step(image, 9), m.training_step(image.expand(2, -1, -1, -1), 9)
    for name in one:
        torch.testing.assert_close(one[name], two[name])


@pytest.mark.parametrize("floor", [1e-9, 1e-6])
def test_a_bright_pixel_that_no_box_covers_costs_the_log_of_the_floor(monkeypatch, floor):
    """21 nats or 14, not the 100 of torch's clipped logarithm; and so at the other end."""
    m = model(recon=2, pixel_floor=floor)
    images = torch.zeros(1, *SHAPE)
    images[:, :, 3:5, 7] = 1
    for painted, pixels in ((0.0, 2), (1.0, images.numel() - 2)):
        monkeypatch.setattr(m, "render", lambda objects, p=painted: torch.full_like(images, p))
        terms = m.training_step(images, 0)
        assert float(terms["recon"]) == pytest.approx(-2 * pixels * math.log(floor), rel=0.001)


def test_the_cost_of_a_pixel_is_the_cross_entropy_where_the_floor_does_not_matter():
    mean, target = torch.rand(50) * 0.98 + 0.01, torch.rand(50)
    torch.testing.assert_close(
        losses.floored_cross_entropy(mean, target, 1e-9),
        torch.nn.functional.binary_cross_entropy(mean, target, reduction="none"),
    )
    assert losses.floored_cross_entropy(torch.tensor(math.nan), torch.tensor(0.5), 1e-9).isnan()


def test_presence_is_a_sample_of_the_relaxed_bernoulli_and_in_detection_its_mode():
    m = model(temperature=0.5)
    images = some_images(m.shape)
    noise = m.noise(images)
    cells, modes = m.infer(images, noise), m.infer(images)
    torch.testing.assert_close(cells.presence, torch.sigmoid((cells.presence_logit + noise.presence) / 0.5))
    assert torch.equal(modes.presence, (modes.presence_prob > 0.5).float())


def test_an_absent_object_behind_another_still_gets_a_gradient_by_which_it_can_come_back():
    """It keeps a little importance, so what is there of it shows, and more of it shows more."""
    m = model(presence_bias=2.0)
    objects = Objects(*(part.detach() for part in m.infer(some_images(m.shape)).objects))
    both = Objects(*(part[:, :1].expand(-1, 2, -1) for part in objects))  # the same object twice
    presence = torch.tensor([1.0, 1e-4])[:, None].repeat(3, 1, 1).requires_grad_()
    m.render(both._replace(presence=presence)).sum().backward()
    assert (presence.grad[:, 1] > 1e-3).all()


def test_where_depth_and_presence_get_no_gradient_while_they_are_frozen():
    for step, blocked in ((TINY.where_frozen_steps - 1, True), (TINY.where_frozen_steps, False)):
        m = model()
        sum(m.training_step(some_images(m.shape), step).values()).backward()
        for net in (m.box_net, m.depth_net, m.presence_net, m.backbone):
            still = all(p.grad is None or float(p.grad.abs().max()) == 0 for p in net.parameters())
            assert still == blocked
        assert float(m.what_encoder[0].weight.grad.abs().max()) > 0


# Gating


def test_gating_with_all_cells_chosen_changes_nothing():
    images = some_images((1, 40, 52))
    terms = []
    for gate in (0, 19, 20):  # 4x5 cells
        torch.manual_seed(7)
        m = model(gate_cells=gate)
        torch.manual_seed(8)
        terms.append(m.training_step(images, 9))
    torch.testing.assert_close(terms[0], terms[2])
    assert (terms[0]["recon"] - terms[1]["recon"]).abs().item() > 0


def test_gating_starts_at_its_step_and_keeps_the_most_present():
    m = model(gate_cells=2, gate_step=4)
    cells = m.infer(some_images(m.shape), m.noise(some_images(m.shape)))
    assert [m.phase(step).gated for step in (3, 4)] == [False, True]
    assert m.chosen(cells, False).presence.shape[1] == 20
    kept = m.chosen(cells, True).presence[..., 0].sort(1, descending=True).values
    torch.testing.assert_close(kept, cells.presence[..., 0].sort(1, descending=True).values[:, :2])


def test_phases_begin_and_end_at_their_steps():
    m = model(warmup_images=1, gate_step=10, gate_cells=4, where_frozen_steps=20)
    phases = {step: m.phase(step) for step in (0, 9, 10, 11, 19, 20, 500)}
    assert [step for step, phase in phases.items() if phase.warmup] == [0, 9]
    assert [step for step, phase in phases.items() if phase.where_frozen] == [0, 9, 10, 11, 19]
    assert [step for step, phase in phases.items() if phase.gated] == [10, 11, 19, 20, 500]
    never = model(warmup_images=0, gate_cells=0, where_frozen_steps=0)
    assert not any(any(never.phase(step)) for step in (0, 10, 500))


def test_before_gating_a_step_uses_the_first_images_of_the_batch():
    m = model(warmup_images=2, gate_step=10, gate_cells=4)
    used, infer = [], m.infer
    m.infer = lambda images, *rest: (used.append(images), infer(images, *rest))[1]
    images = some_images(m.shape, 5)
    for step, n in ((9, 2), (10, 5)):
        m.training_step(images, step)
        assert torch.equal(used[-1], images[:n])


# The backbone, the boxes


@pytest.mark.parametrize("stride", [4, 8, 12, 16])
@pytest.mark.parametrize("sides", [(128, 128), (40, 52)])
def test_a_cells_features_see_the_image_around_the_cell(stride, sides):
    """The receptive field, found by gradients, is centred on the cell to half a pixel."""
    backbone = Backbone(1, 4, 3, stride, sides)
    images = torch.rand(1, 1, *sides, requires_grad=True)
    row, column = 1, 2
    for p in backbone.parameters():
        torch.nn.init.constant_(p, 0.01)  # no dead ReLU
    out = backbone(images)
    assert out.shape == (1, 3, *backbone.grid)
    assert backbone.grid == (math.ceil(sides[0] / stride), math.ceil(sides[1] / stride))
    (grad,) = torch.autograd.grad(out[0, :, row, column].sum(), images)
    seen = grad[0, 0].abs() > 0
    field = 1 + 3 * (1 + stride // 4 + 2 * (stride // 4))
    for side, lit, cell in ((sides[0], seen.any(1), row), (sides[1], seen.any(0), column)):
        at = lit.nonzero()[:, 0]
        middle = (cell + 0.5) * stride
        assert int(at[0]) == pytest.approx(max(0, middle - field / 2), abs=0.5)
        assert int(at[-1]) + 1 == pytest.approx(min(side, middle + field / 2), abs=0.5)


def test_boxes_lie_around_their_cells_and_are_no_larger_than_the_anchor():
    m = model()
    cells = m.infer(some_images(m.shape), m.noise(some_images(m.shape)))
    x0, y0, x1, y1 = cells.boxes.unbind(-1)
    at = torch.arange(m.cells)
    for low, high, cell in ((x0, x1, at % m.columns), (y0, y1, at // m.columns)):
        assert ((high - low > 0) & (high - low <= TINY.anchor)).all()
        offset = (low + high) / 2 / TINY.stride - cell
        assert ((offset >= -0.5) & (offset <= 1.5)).all()


def test_no_output_of_the_box_network_makes_a_box_without_size_or_one_larger_than_the_anchor():
    """Logits are clamped to -10..10."""
    for raw, share in ((-1e4, 1 / (1 + math.exp(10))), (1e4, 1 / (1 + math.exp(-10)))):
        m = model()
        with torch.no_grad():
            m.box_net[-1].bias[:4] = raw
            x0, y0, x1, y1 = m.infer(some_images(m.shape)).boxes.double().unbind(-1)
        for side in (x1 - x0, y1 - y0):
            torch.testing.assert_close(side, torch.full_like(side, TINY.anchor * share), rtol=0.05, atol=0)
        offset = (x0 + x1) / 2 / TINY.stride - torch.arange(m.cells) % m.columns
        torch.testing.assert_close(offset, torch.full_like(offset, 2 * share - 0.5), rtol=0, atol=1e-4)


def test_what_is_watched_is_how_many_objects_an_image_has():
    m = model()
    assert m.watch() == {}
    for bias, objects in ((8.0, m.cells), (-8.0, 0)):
        m = model(presence_bias=bias)
        m.training_step(some_images(m.shape), 9)
        assert m.watch() == {"objects": objects}


# Detection


def test_detections_lie_in_the_image_and_do_not_depend_on_the_batch():
    m = model(presence_bias=1.0).eval()
    images = some_images(m.shape, 4)
    with torch.no_grad():
        together = m.detect(images)
        alone = [m.detect(image[None]) for image in images]
    assert together.clusters is None
    assert together.what.shape == (len(together.boxes), TINY.what_dim)
    assert (together.boxes >= 0).all()
    assert (together.boxes[:, [0, 2]] <= 52).all()
    assert (together.boxes[:, [1, 3]] <= 40).all()
    assert (together.scores > 0.01).all()
    torch.testing.assert_close(together.boxes, torch.cat([d.boxes for d in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.scores, torch.cat([d.scores for d in alone]), rtol=1e-4, atol=1e-4)


def test_trimming_is_an_option():
    m = model(presence_bias=1.0)
    with torch.no_grad():
        m.decoder[-1].bias.fill_(-5)  # dark everywhere
        m.decoder[-1].bias.view(2, 8, 8)[0, 3:5, 2:7] = 5
        cut = m.detect(some_images(m.shape))
        uncut = model(presence_bias=1.0, trim=0.0).detect(some_images(m.shape))
    same = torch.cdist(cut.what, uncut.what).argmin(1)  # what is left of a box may lie outside the image
    trimmed, whole = cut.boxes, uncut.boxes[same]
    inside = (whole[:, 0] > 0) & (whole[:, 1] > 0) & (whole[:, 2] < 52) & (whole[:, 3] < 40)
    assert inside.any()
    ratio = (trimmed[:, 2:] - trimmed[:, :2])[inside] / (whole[:, 2:] - whole[:, :2])[inside]
    torch.testing.assert_close(ratio, torch.tensor([5 / 8, 2 / 8]).expand_as(ratio), rtol=1e-4, atol=1e-4)


# Learning, and bad input


@pytest.mark.slow
def test_a_few_steps_on_one_batch_lower_the_reconstruction_term():
    start = {"presence_bias": 2, "colour_bias": -2, "size_prior": 0.6, "anchor": 40, "where_frozen_steps": 0}
    m = model(lr=1e-2, hidden=32, encoder_widths="64", **start)
    images = torch.zeros(8, 1, 40, 52)
    places = torch.randint(0, 28, (8, 2), generator=torch.Generator().manual_seed(9)).tolist()
    for image, (y, x) in zip(images, places, strict=True):
        image[:, y : y + 12, x : x + 12] = 0.9
    (optimizer,) = m.optimizers()
    recon = []
    for step in range(45):
        terms = m.training_step(images, step)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        optimizer.step()
        recon.append(terms["recon"].item())
    assert sum(recon[-5:]) < 0.7 * sum(recon[:5])
    assert 0 <= m.watch()["objects"] <= m.cells


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 10}, "stride=10 is not a multiple of 4"),
        ({"stride": 0}, "spair.stride=0 is out of range"),
        ({"anchor": 0}, "spair.anchor=0 is out of range"),
        ({"encoder_widths": "256,128"}, "encoder_widths=256,128"),
        ({"presence_kl": "dirty"}, "spair.presence_kl=dirty is not one of: clean, noisy"),
        ({"size_prior": 1.5}, "spair.size_prior=1.5 is out of range"),
        ({"count_start": 0.001}, "spair: count_floor=0.0125 is above count_start=0.001"),
    ],
)
def test_a_wrong_option_is_one_line(options, words):
    with pytest.raises(UsageError) as error:
        build(SpairConfig, "spair", options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("anchor", 41), ("stride", 44)])
def test_an_anchor_or_cell_larger_than_the_image_names_the_option(key, value):
    with pytest.raises(UsageError, match=rf"spair.{key}={value} is larger than the image, which is 40x52"):
        model(**{key: value})


@pytest.mark.parametrize("protocol", ["demo", "small", "paper"])
@pytest.mark.parametrize("data", ["multimnist", "fruit2d-sim", "anything"])
def test_settings_of_every_protocol_are_valid(protocol, data):
    config = build(SpairConfig, "spair", Spair.settings(protocol, data))
    assert config.what_dim == (256 if protocol == "paper" else 32)
    if protocol == "paper":
        assert (config.anchor, config.stride) == (72, 12)
    side = 128 if protocol == "paper" else 64
    assert config.anchor <= side


def test_what_is_visible_of_an_object_is_its_share_of_all_importance():
    """Of two in one place each shows by its presence and depth; one alone, or beside an absent one, shows wholly."""
    m = model()
    cells = m.infer(some_images(m.shape))
    boxes = torch.tensor([[4.0, 4, 20, 20]] * 2 + [[30.0, 10, 46, 26]] * 2)[None]
    few = cells._replace(
        boxes=boxes,
        presence_logit=torch.tensor([0.0, 0.0, 0.0, -40.0]).view(1, 4, 1),
        depth=torch.tensor([3.0, 1, 2, 2]).view(1, 4, 1),
    )
    found = m.visible(few, torch.ones(1, 4, 1, 8, 8))
    expected = torch.tensor([0.75, 0.25, 1, 0]).view(1, 4, 1, 1).expand(1, 4, 8, 8)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_trimming_what_is_hidden_only_ever_shrinks_boxes():
    whole, cut = model(presence_bias=1.0), model(presence_bias=1.0, trim_hidden=True)
    with torch.no_grad():
        found = [m.infer(some_images(m.shape)) for m in (whole, cut)]
        assert torch.equal(found[0].boxes, found[1].boxes)
        a, b = (m.detect(some_images(m.shape)) for m in (whole, cut))
    area = [((x.boxes[:, 2:] - x.boxes[:, :2]).prod(1)).mean() for x in (a, b)]
    assert area[1] < area[0]
