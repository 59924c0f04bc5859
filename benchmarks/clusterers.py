"""Clusterers on glimpses of true boxes: accuracy, mutual information and processor time of each seed.

    python -m benchmarks.clusterers contrastive,ceiling --case small --seeds 3 --digits FOLDER

Boxes are jittered by a normal deviate of half a pixel at each corner, as a detector's are. Nothing is told to the
clusterers but the number of clusters. Time is the process's own (`time.process_time`), fit and assignment.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from objbench.clusterer import Clusterer, Cut, Objects, ObjectShape
from objbench.options import build
from objbench.scenes import SceneSource
from objbench.spatial import crop

CLUSTERERS = {
    "kmeans": "kmeans.model:KMeans",
    "manifold": "manifold.model:Manifold",
    "contrastive": "contrastive.model:Contrastive",
    "ceiling": "contrastive.model:Ceiling",
    "iic": "iic.model:Iic",
    "aae": "aae.model:Aae",
    "gmvae": "gmvae.model:Gmvae",
}
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    # case: (data, options, training scenes, test scenes)
    "small": ("multimnist", {"height": 64, "width": 64, "max_digits": 5}, 4000, 1500),
    "apart": ("multimnist", {"height": 64, "width": 64, "max_digits": 5, "min_distance": 11}, 4000, 1500),
    "demo": (
        "multimnist",
        {"height": 64, "width": 64, "max_digits": 5, "min_distance": 11, "source": "embedded"},
        2000,
        1000,
    ),
    "fruit": ("fruit2d-sim", {}, 1000, 300),
    "mnist": ("mnist", {}, 60_000, 10_000),
    "mnist-embedded": ("mnist", {"source": "embedded"}, 60_000, 10_000),
}


def source_of(case: str, digits: str) -> SceneSource:
    """The scenes of a case."""
    from objbench_plugins.fruit2d.simulated import Fruit2DSim
    from objbench_plugins.mnist.source import Mnist
    from objbench_plugins.multimnist.source import MultiMnist

    data, options, _, _ = CASES[case]
    kind: type[SceneSource] = {"multimnist": MultiMnist, "fruit2d-sim": Fruit2DSim, "mnist": Mnist}[data]
    own = {"digits": digits} if digits and options.get("source") != "embedded" and "mnist" in data else {}
    return kind(
        build(kind.Config, data, kind.settings("small") if data == "fruit2d-sim" else {}, options, own), 0
    )


def objects_of(source: SceneSource, split: Any, count: int, cut: Cut, jitter: float) -> Objects:
    """Square glimpses of the true boxes of the first `count` scenes, with labels."""
    glimpses, labels = [], []
    size = source.size(split)
    noise = torch.Generator().manual_seed(17)
    for indices in torch.arange(count if size is None else min(count, size)).split(500):
        scenes = source.scenes(split, indices)
        boxes = scenes.truth.boxes + 0.5 * jitter * torch.randn(scenes.truth.boxes.shape, generator=noise)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) * (1 + cut.margin) / 2
        square = torch.cat([middle - half, middle + half], 1)
        for some in torch.arange(len(square)).split(1000):
            glimpses.append(crop(scenes.images[scenes.truth.image[some]], square[some, None], cut.size)[:, 0])
        labels.append(scenes.truth.labels)
    every = torch.cat(glimpses).float()
    return Objects(every, torch.ones(len(every)), labels=torch.cat(labels))


def scored(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Accuracy one to one, and normalised mutual information."""
    together = np.zeros((int(found.max()) + 1, int(truth.max()) + 1))
    np.add.at(together, (found.numpy(), truth.numpy()), 1)
    rows, columns = linear_sum_assignment(-together)
    return float(together[rows, columns].sum() / len(truth)), float(
        normalized_mutual_info_score(truth, found)
    )


def loaded(name: str) -> type[Clusterer]:
    """A first-party clusterer."""
    import importlib

    module, kind = CLUSTERERS[name].split(":")
    found: type[Clusterer] = getattr(importlib.import_module(f"objbench_plugins.{module}"), kind)
    return found


def warm_up() -> float:
    """Processor seconds that numba takes to compile the embedding, once a machine where it can cache."""
    from objbench_plugins.manifold.embedding import embed

    start = time.process_time()
    embed(np.random.default_rng(0).random((200, 20)), 10, 5)
    return time.process_time() - start


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", help="clusterers, with commas")
    parser.add_argument("--case", choices=CASES, default="small")
    parser.add_argument("--protocol", default="small", help="whose settings of the clusterers are used")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--digits", default="", help="folder of MNIST's four files")
    parser.add_argument("--clusters", type=int, default=0)
    parser.add_argument("--jitter", type=float, default=-1.0, help="1 by default, 0 on mnist")
    parser.add_argument(
        "-o", action="append", default=[], metavar="KEY=VALUE", help="an option of the clusterer"
    )
    parser.add_argument("--steps", action="store_true", help="also score what `contrastive` found on the way")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, _, train, test = CASES[given.case]
    source = source_of(given.case, given.digits)
    clusters = given.clusters or len(source.classes)
    jitter = given.jitter if given.jitter >= 0 else float(data != "mnist")
    options = dict(pair.split("=", 1) for pair in given.o)
    if {"manifold", "contrastive"} & set(given.names.split(",")):
        print(f"compilation of the embedding: {warm_up():.0f} s", flush=True)
    print(
        "| clusterer | case | seed | objects | ACC | NMI | processor seconds |\n|---|---|---|---|---|---|---|"
    )
    for name in given.names.split(","):
        kind = loaded(name)
        config = build(
            kind.Config, name, kind.settings(given.protocol, data), {"clusters": clusters}, options
        )
        cut = kind.cut(config)
        assert cut is not None
        objects, fresh = (
            objects_of(source, split, count, cut, jitter)
            for split, count in (("train", train), ("test", test))
        )
        assert objects.labels is not None
        assert fresh.labels is not None
        shape = ObjectShape(objects.glimpses.shape[1], cut.size, 0)
        blind = Objects(objects.glimpses, objects.scores, labels=objects.labels if kind.oracle else None)
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            torch.manual_seed(seed)
            np.random.seed(seed)
            start = time.process_time()
            clusterer = kind(config, shape).train()
            clusterer.fit(blind)
            clusterer.eval()
            with torch.no_grad():
                found = clusterer.assign(fresh)
            spent = time.process_time() - start
            acc, nmi = scored(found, fresh.labels)
            print(
                f"| {name} | {given.case} | {seed} | {len(objects)} | {acc:.3f} | {nmi:.3f} | {spent:.0f} |",
                *clusterer.warnings(),
                flush=True,
            )
            if given.steps and len(objects) <= getattr(config, "most", 0):
                for step, clustering in getattr(clusterer, "trace", ()):
                    acc, nmi = scored(torch.from_numpy(clustering.shares.argmax(1)), objects.labels)
                    print(
                        f"    {step}: {acc:.3f} {nmi:.3f}, agreement {clustering.agreement:.4f}", flush=True
                    )


if __name__ == "__main__":
    main()
