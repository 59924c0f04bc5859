"""The Gaussian mixture that clusters for detectors which do not: its fits, its state, and what it warns of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from objbench.clusterer import Objects, ObjectShape
from objbench.errors import UsageError
from objbench.options import build
from objbench_plugins.gmm.model import Mixture


def objects(what: torch.Tensor) -> Objects:
    """Objects of which only these latents are known."""
    return Objects(torch.zeros(len(what), 1, 0, 0), torch.ones(len(what)), what)


def blobs(n: int = 200) -> Objects:
    """Two groups [2n, 3], far apart."""
    near = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return objects(torch.cat([near, near + torch.tensor([20.0, 0, 0])]))


def mixture(fitted_on: Objects | None = None, values: int = 3, **options: Any) -> Mixture:
    """A mixture with these options for latents of so many values; fitted if there is something to fit on."""
    np.random.seed(0)
    made = Mixture(build(Mixture.Config, "gmm", options), ObjectShape(1, 0, values))
    if fitted_on is not None:
        made.fit(fitted_on)
    return made


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
@pytest.mark.parametrize("more", [{}, {"standardise": True}, {"pca": 2}], ids=str)
def test_a_mixture_saved_and_loaded_clusters_alike(covariance: str, more: dict[str, Any]) -> None:
    options = {"clusters": 2, "covariance": covariance, "restarts": 2, **more}
    made = mixture(blobs(), **options)
    assert made.warnings() == []
    clusters = made.assign(blobs())
    assert clusters.dtype == torch.int64
    assert (clusters[:200] == clusters[0]).all()
    assert (clusters[200:] == 1 - clusters[0]).all()
    again = mixture(**options)
    assert not again.assign(blobs()).any(), "it knows nothing yet"
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.assign(blobs()), clusters)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_little_to_cluster_is_a_warning(count: int) -> None:
    made = mixture(objects(torch.randn(count, 3)))
    (warning,) = made.warnings()
    assert f"{count} to cluster, and gmm.clusters=10" in warning
    again = mixture()
    again.load_state_dict(made.state_dict())
    assert again.assign(objects(torch.randn(4, 3))).tolist() == [0, 0, 0, 0]
    assert again.assign(objects(torch.randn(0, 3))).tolist() == []


def test_objects_that_are_all_alike_are_in_one_cluster() -> None:
    made = mixture(objects(torch.ones(50, 3)))
    assert made.assign(objects(torch.ones(5, 3))).unique().numel() == 1


def test_one_cluster_is_one_cluster() -> None:
    assert not mixture(blobs(), clusters="1").assign(blobs()).any()


def test_the_seed_is_the_cells() -> None:
    noise = objects(torch.randn(300, 8, generator=torch.Generator().manual_seed(1)))
    states = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        made = Mixture(build(Mixture.Config, "gmm", {"restarts": 1}), ObjectShape(1, 0, 8))
        made.fit(noise)
        states.append(made.state_dict()["means"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_more_principal_components_than_values_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"gmm\.pca=4 is more than the 3"):
        mixture(pca=4)


def test_options_of_earlier_versions_are_unknown() -> None:
    for old in ("components", "seed"):
        with pytest.raises(UsageError, match=f"no gmm option named '{old}'"):
            mixture(**{old: 3})


def test_only_a_collapsed_gaussian_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else goes wrong is no reason to put all detections into one cluster."""

    def fails(reason: str) -> None:
        def fit(*_: object) -> None:
            raise ValueError(reason)

        monkeypatch.setattr("sklearn.mixture.GaussianMixture.fit", fit)

    fails("failed because some components have ill-defined empirical covariance")
    made = mixture(blobs(), clusters=3)
    assert "all detections are in cluster 0: try gmm.covariance=diag" in made.warnings()[0]
    assert not made.assign(blobs()).any()
    fails("something else")
    with pytest.raises(ValueError, match="something else"):
        mixture(blobs(), clusters=3)
