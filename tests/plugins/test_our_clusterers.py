"""The first-party clusterers of glimpses, on objects that are easy to tell apart."""

import importlib

import pytest
import torch

from objbench.clusterer import Objects, ObjectShape
from objbench.errors import UsageError
from objbench.options import build
from objbench_plugins.contrastive.losses import balance, between_views, nt_xent, to_target
from objbench_plugins.glimpses.views import Views, batches, steps_of
from objbench_plugins.gmvae.model import kl, log_density
from objbench_plugins.iic.model import information_loss
from objbench_plugins.manifold.embedding import Clustering

KINDS = {
    "kmeans": ("kmeans.model:KMeans", {"starts": 3}),
    "manifold": ("manifold.model:Manifold", {"most": 200}),
    "contrastive": ("contrastive.model:Contrastive", {"epochs": 5, "round_epochs": 5, "batch_size": 24}),
    "ceiling": ("contrastive.model:Ceiling", {"epochs": 8, "batch_size": 24}),
    "iic": (
        "iic.model:Iic",
        {"width": 4, "steps": 60, "batch_size": 48, "lr": 3e-3, "heads": 2, "overclusters": 6},
    ),
    "aae": ("aae.model:Aae", {"width": 32, "style": 2, "steps": 60, "batch_size": 48, "lr": 3e-3}),
    "gmvae": ("gmvae.model:Gmvae", {"width": 32, "x": 4, "w": 2, "steps": 60, "batch_size": 48, "lr": 3e-3}),
}
WITHOUT_UMAP = {"manifold", "contrastive"}  # as many dimensions as keep the embedding out: see `embed`
SURE = {"kmeans", "manifold", "contrastive", "ceiling"}  # that find these clusters from any seed
CLUSTERS, SIZE = 3, 12


def some(n=96, channels=1, seed=0, clusters=CLUSTERS):
    """Objects of three shapes: a bar, a block, a frame; the third is rare. With noise, so that all differ."""
    gen = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 8
    labels = torch.where(labels < 4, 0, torch.where(labels < 7, 1, 2))[torch.randperm(n, generator=gen)]
    shapes = torch.zeros(3, channels, SIZE, SIZE)
    shapes[0, :, 5:7, 1:11] = 1
    shapes[1, :, 2:10, 2:10] = 0.8
    shapes[2, :, 1:11, 1:11] = 1
    shapes[2, :, 3:9, 3:9] = 0
    noise = 0.1 * torch.rand(n, channels, SIZE, SIZE, generator=gen)
    glimpses = (shapes[labels] + noise).clamp(0, 1)
    return Objects(glimpses, torch.ones(n), labels=labels)


def made(name, channels=1, **options):
    where, own = KINDS[name]
    module, kind = where.split(":")
    cls = getattr(importlib.import_module(f"objbench_plugins.{module}"), kind)
    if name in WITHOUT_UMAP:
        own = {"dimensions": 40, "embeddings": 2, **own}
    config = build(cls.Config, name, {"clusters": CLUSTERS, "glimpse": SIZE}, own, options)
    assert cls.cut(config).size == SIZE
    return cls(config, ObjectShape(channels, SIZE, 0))


def fitted(name, objects, channels=1, seed=3, **options):
    torch.manual_seed(seed)
    clusterer = made(name, channels, **options).train()
    given = objects if clusterer.oracle else Objects(objects.glimpses, objects.scores)
    with torch.enable_grad():
        clusterer.fit(given)
    return clusterer.eval()


def accuracy(found, labels):
    from scipy.optimize import linear_sum_assignment

    size = 1 + max(int(found.max()), int(labels.max()))
    together = torch.zeros(size, size)
    together.index_put_((found, labels), torch.ones(len(labels)), accumulate=True)
    return float(together[linear_sum_assignment(-together)].sum() / len(labels))


SLOW = {"contrastive"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, channels), marks=[pytest.mark.slow] if name in SLOW else [])
        for name in KINDS
        for channels in (1, 3)
    ],
)
def case(request):
    name, channels = request.param
    objects = some(channels=channels)
    return name, channels, objects, fitted(name, objects, channels)


@torch.no_grad()
def test_new_objects_come_into_their_clusters(case):
    name, channels, _, clusterer = case
    new = some(64, channels, seed=1)
    found = clusterer.assign(new)
    assert found.dtype == torch.int64
    assert accuracy(found, new.labels) > (0.95 if name in SURE else 0.6)
    assert not clusterer.warnings()


@torch.no_grad()
def test_its_state_is_all_it_needs(case):
    name, channels, objects, clusterer = case
    other = made(name, channels).eval()
    other.load_state_dict(clusterer.state_dict())
    assert torch.equal(other.assign(objects), clusterer.assign(objects))


@torch.no_grad()
def test_single_precision_gives_the_clusters_of_double_also_at_the_border(case):
    """Between two objects of different clusters, bisected until rounding in single precision decides."""
    _, channels, _, clusterer = case
    new = some(64, channels, seed=5)
    found = clusterer.assign(new)
    assert torch.equal(found, clusterer._exactly(new.glimpses))
    one, two = (new.glimpses[int((found == cluster).nonzero()[0])] for cluster in found.unique()[:2])
    low, high, between = 0.0, 1.0, []
    for _ in range(40):
        middle = (low + high) / 2
        between.append(one + middle * (two - one))
        same = int(clusterer._exactly(between[-1][None])) == int(clusterer._exactly(one[None]))
        low, high = (middle, high) if same else (low, middle)
    glimpses = torch.stack(between)
    exact = torch.cat([clusterer._exactly(glimpse[None]) for glimpse in glimpses])
    assert torch.equal(clusterer.assign(Objects(glimpses, torch.ones(len(glimpses)))), exact)


def test_close_scores_alone_are_computed_in_double(monkeypatch):
    clusterer = fitted("ceiling", some())
    asked = []
    exactly = type(clusterer)._exactly
    monkeypatch.setattr(type(clusterer), "_exactly", lambda self, g: asked.append(len(g)) or exactly(self, g))
    with torch.no_grad():
        clusterer.assign(some(64, seed=1))
    assert sum(asked) < 8


@torch.no_grad()
def test_an_object_is_assigned_alone(case):
    _, channels, _, clusterer = case
    new = some(40, channels, seed=2)
    found = clusterer.assign(new)
    order = torch.randperm(40)
    assert torch.equal(clusterer.assign(new[order]), found[order])
    assert torch.equal(torch.cat([clusterer.assign(new[i : i + 1]) for i in range(40)]), found)
    assert clusterer.assign(new[:0]).shape == (0,)
    damaged = Objects(torch.full_like(new.glimpses[:1], torch.nan), new.scores[:1])
    assert 0 <= int(clusterer.assign(damaged)) < CLUSTERS
    assert damaged.glimpses.isnan().all()  # its input is left as it was


@torch.no_grad()
def test_the_same_seed_gives_the_same_with_one_thread_and_two(case):
    name, channels, objects, clusterer = case
    found = clusterer.assign(objects)
    again = fitted(name, objects, channels)
    for key, value in clusterer.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(clusterer.assign(objects), found)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("number", [0, 1, 2, "duplicates"])
def test_fewer_objects_than_clusters_are_all_in_cluster_0(name, number):
    few = some(1)[torch.zeros(50, dtype=torch.int64)] if number == "duplicates" else some(2)[:number]
    clusterer = fitted(name, few)
    (warning,) = clusterer.warnings()
    assert "cluster 0" in warning
    with torch.no_grad():
        assert not clusterer.assign(some(20)).any()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.slow
def test_as_many_objects_as_clusters_and_many_copies_can_be_fitted(name):
    three = some()
    first = torch.stack([(three.labels == label).nonzero()[0, 0] for label in range(3)])
    for index in (first, first.repeat(30)):
        clusterer = fitted(name, three[index])
        with torch.no_grad():
            assert (clusterer.assign(three) < CLUSTERS).all()


def test_only_the_oracle_looks_at_labels():
    objects = some()
    with pytest.raises(UsageError, match="none"):
        made("ceiling").fit(Objects(objects.glimpses, objects.scores))
    wrong = Objects(objects.glimpses, objects.scores, labels=(objects.labels + 1) % 3)
    assert not torch.equal(
        fitted("ceiling", wrong).assign(objects), fitted("ceiling", objects).assign(objects)
    )
    assert [name for name in KINDS if made(name).oracle] == ["ceiling"]


def test_the_ceiling_leaves_out_what_has_no_class():
    objects = some()
    labels = torch.where(objects.labels == 2, -1, objects.labels)
    clusterer = fitted("ceiling", Objects(objects.glimpses, objects.scores, labels=labels))
    with torch.no_grad():
        assert not (clusterer.assign(objects) == 2).any()


def test_nt_xent_by_hand():
    """Two objects, two views each, along the axes: like pairs are at 1, others at 0."""
    z = torch.tensor([[2.0, 0], [0, 3.0], [1.0, 0], [0, 1.0]])
    e = torch.exp(torch.tensor(1 / 0.5))
    torch.testing.assert_close(nt_xent(z, 0.5), -(e / (e + 2)).log())


def test_terms_of_self_training_by_hand():
    one, two = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    shares = torch.tensor([[1.0, 0.0]])
    expected = -(torch.tensor([0.9, 0.1]) @ (one + two)[0]) / 2  # smoothing .2 of two clusters
    torch.testing.assert_close(to_target(one, two, shares, 0.2), expected)
    kl = (one.exp() * (one - two)).sum() + (two.exp() * (two - one)).sum()
    torch.testing.assert_close(between_views(one, two), kl / 2)
    torch.testing.assert_close(
        balance(one, two, torch.tensor([0.7, 0.3])), torch.tensor(0.0), atol=1e-6, rtol=0
    )
    assert balance(one, one, torch.tensor([0.97, 0.03])) > 0.5  # 31 : 1: equal clusters are not wanted


def test_views_keep_the_range_and_the_size_and_no_change_changes_nothing():
    glimpses = some(8, 3).glimpses
    view = Views()(glimpses)
    assert view.shape == glimpses.shape
    assert view.min() >= 0
    assert view.max() <= 1
    assert not torch.allclose(view, glimpses)
    torch.testing.assert_close(Views(0, 0, 0, 0, 0)(glimpses), glimpses, atol=1e-5, rtol=0)


def test_batches_hold_each_object_once_an_epoch():
    epoch = torch.cat(list(batches(10, 5, 2)))
    assert sorted(epoch.tolist()) == list(range(10))
    assert len(list(batches(3, 256, 7))) == 7
    assert steps_of(1000, 256, 12) == 36
    assert steps_of(3, 256, 0.1) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifold", "contrastive"])
def test_with_the_neighbour_embedding(name):
    objects, new = some(300), some(100, seed=1)
    clusterer = fitted(name, objects, dimensions=5, embeddings=2)
    with torch.no_grad():
        assert accuracy(clusterer.assign(new), new.labels) > 0.95
    again = fitted(name, objects, dimensions=5, embeddings=2)
    for key, value in clusterer.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize(
    ("features", "raw", "sure", "expected"),
    [
        (0.99, 1.0, 0.95, "features"),
        (0.9, 1.0, 0.95, "raw"),
        (0.9, 0.8, 0.95, "features"),
        (0.9, 1.0, 0, "features"),
    ],
)
def test_raw_glimpses_are_taken_where_they_agree_better(features, raw, sure, expected, monkeypatch):
    """And a later round that agrees less is not taken."""
    agreements = {"contrastive": features, "raw": raw, "round 1": 0.1}
    clusterer, objects, targets = made("contrastive", sure=sure), some(), []
    marks = {"contrastive": 0, "raw": 1, "round 1": 2}

    def clustering(name, values):
        shares = torch.zeros(len(objects), CLUSTERS)
        shares[:, marks[name]] = 1
        return Clustering(shares.numpy(), agreements[name])

    monkeypatch.setattr(clusterer, "clustering", clustering)
    monkeypatch.setattr(clusterer, "contrast", lambda glimpses: None)
    monkeypatch.setattr(
        clusterer, "self_train", lambda glimpses, shares: targets.append(int(shares[0].argmax()))
    )
    clusterer.fit(Objects(objects.glimpses, objects.scores))
    assert targets == [["features", "raw"].index(expected)] * 2


def unlike(n, seed):
    """Equally many bars and posts, 1 pixel off the middle, and more unlike in brightness than in shape."""
    gen = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    shapes = torch.zeros(2, 1, SIZE + 2, SIZE + 2)
    shapes[0, :, 6:8, 2:12] = 1
    shapes[1, :, 2:12, 6:8] = 1
    off = torch.randint(3, (2, n), generator=gen)
    glimpses = torch.stack([
        shapes[label, :, y : y + SIZE, x : x + SIZE] for label, y, x in zip(labels, *off, strict=True)
    ])  # fmt: skip
    light = 0.3 + 0.7 * torch.rand(n, 1, 1, 1, generator=gen)
    noise = 0.1 * torch.rand(n, 1, SIZE, SIZE, generator=gen)
    return Objects((glimpses * light + noise).clamp(0, 1), torch.ones(n), labels=labels)


@pytest.mark.slow
def test_iic_finds_shapes_of_any_brightness():
    objects, new = unlike(300, 0), unlike(100, 1)
    clusterer = fitted("iic", objects, clusters=2, width=4, steps=100, batch_size=60, lr=3e-3, overclusters=4)
    with torch.no_grad():
        assert accuracy(clusterer.assign(new), new.labels) > 0.8


@torch.no_grad()
def test_views_of_iic():
    """Crops show black outside the glimpse, and the light of a view changes; both of a pair keep 0..1."""
    torch.manual_seed(0)
    clusterer, full = made("iic"), torch.full((200, 1, SIZE, SIZE), 0.7)
    near, view = clusterer.near(full), clusterer.view(full)
    for one in (near, view):
        assert one.min() >= 0
        assert one.max() <= 1
    whole = (near.amin((1, 2, 3)) > 0.69).float().mean()
    assert 0.35 < whole < 0.65  # the others are moved, and show black
    assert view.amax((1, 2, 3)).std() > 0.05
    still = made("iic", rotation=0, least_crop=1, most_crop=1, reach=1, jitter=0)
    objects = some().glimpses
    torch.testing.assert_close(still.view(objects), objects, atol=1e-5, rtol=0)
    torch.testing.assert_close(still.near(objects), objects, atol=1e-5, rtol=0)


@torch.no_grad()
def test_information_loss_by_hand():
    """Two clusters that views always share, equally: one bit; shared by chance: none; one cluster alone: none."""
    one = torch.eye(2).repeat(5, 1)
    torch.testing.assert_close(information_loss(one, one), -torch.tensor(2.0).log())
    even = torch.full((10, 2), 0.5)
    torch.testing.assert_close(information_loss(even, even), torch.tensor(0.0), atol=1e-6, rtol=0)
    alone = torch.tensor([[1.0, 0]]).repeat(10, 1)
    torch.testing.assert_close(information_loss(alone, alone), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_gaussians_of_the_gmvae_are_torch_s():
    q = (torch.randn(4, 3), torch.randn(4, 3))
    p = (torch.randn(4, 3), torch.randn(4, 3))
    normal = [torch.distributions.Normal(mean, (log / 2).exp()) for mean, log in (q, p)]
    torch.testing.assert_close(kl(q, p), torch.distributions.kl_divergence(*normal).sum(1))
    x = torch.randn(4, 3)
    differs = log_density(x, q) - normal[0].log_prob(x).sum(1)
    torch.testing.assert_close(differs, differs[0].expand(4))  # by the constant that components share


def test_the_bound_of_the_gmvae_by_hand():
    """Its four terms from torch's distributions, at the same draw."""
    model = made("gmvae").eval()
    flat = some(5).glimpses.flatten(1)
    torch.manual_seed(1)
    found = model.loss(flat)
    torch.manual_seed(1)
    (mean, log), (w_mean, w_log) = model.encode(flat)
    x = mean + (log / 2).exp() * torch.randn_like(mean)
    w = w_mean + (w_log / 2).exp() * torch.randn_like(w_mean)
    normal = torch.distributions.Normal
    parts = [normal(m, (v / 2).exp()) for m, v in zip(*(t.unbind(1) for t in model.mixture(w)), strict=True)]
    z = torch.stack([part.log_prob(x).sum(1) for part in parts], 1).softmax(1)
    q = normal(mean, (log / 2).exp())
    divergence = torch.distributions.kl_divergence
    conditional = torch.stack([divergence(q, part).sum(1) for part in parts], 1)
    prior = divergence(normal(w_mean, (w_log / 2).exp()), normal(torch.zeros_like(w), 1.0)).sum(1)
    pixels = torch.distributions.Bernoulli(logits=model.decoder(x), validate_args=False).log_prob(flat).sum(1)
    z_prior = (z * (z * CLUSTERS).log()).sum(1).mean()
    expected = (-pixels + (z * conditional).sum(1) + prior).mean() + z_prior.clamp(min=model.config.free_bits)
    torch.testing.assert_close(found, expected)
