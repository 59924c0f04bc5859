"""GMAIR's faster ways beside the plain ones: how many times as fast, forward and backward, on one thread and in turn.

Time is that of the processor, which other work on the machine disturbs less. Sizes are those of a gated step of the
small protocol on MultiMNIST, and for renderers also of a step of paper.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from objbench.options import build
from objbench.scenes import SceneShape
from objbench.spatial import overlap
from objbench.spatial.reference import overlap_plain
from objbench.train.products import onednn
from objbench.train.steps import take_step
from objbench_plugins.gmair import networks
from objbench_plugins.gmair.model import Gmair
from objbench_plugins.gmair.reference import render_plain
from objbench_plugins.gmair.render import render, render_published

Way = Callable[[], object]
ROUNDS = 9


def rows() -> list[dict[str, Any]]:
    """A row a pair: the plain way's time in the faster's. Above 1 the faster way is faster."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pairs = {
        "gmair: heads as one convolution": _heads(),
        "gmair: overlap by sums": _overlaps(),
        "gmair: published renderer, small": _published(32, 12, 16, 64, 36.0, render_plain),
        "gmair: published renderer, paper": _published(1, 256, 32, 128, 72.0, render_plain),
        "gmair: published for linear, small": _published(32, 12, 16, 64, 36.0, render),
        "gmair: published for linear, paper": _published(16, 256, 32, 128, 72.0, render),
        "gmair: step by oneDNN for MKL": _products(),
        "gmair: step in channels_last": _layouts(),
    }
    found = []
    for name, (faster, plain) in pairs.items():
        ours, theirs = in_turn(faster, plain)
        note = f"{1e3 * ours:.1f} ms for {1e3 * theirs:.1f} ms"
        found.append({"name": name, "value": theirs / ours, "unit": "times", "note": note})
    return found


def in_turn(*ways: Way) -> list[float]:
    """The median processor seconds of each, in rounds of one run of each; the first run of each is left out."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS + 1):
        for way, taken in zip(ways, times, strict=True):
            began = time.process_time()
            way()
            taken.append(time.process_time() - began)
    return [statistics.median(taken[1:]) for taken in times]


def _heads() -> tuple[Way, Way]:
    heads = [networks.head(64, 32, 1, out) for out in (1, 2, 8)]
    features = torch.rand(32, 64, 8, 8, requires_grad=True)

    def joined() -> None:
        networks.run_heads(heads, features).sum().backward()  # type: ignore[no-untyped-call]

    def apart() -> None:
        sum(head(features).sum() for head in heads).backward()

    return joined, apart


def _objects(n: int, k: int, g: int, side: int, largest: float) -> list[Tensor]:
    """Boxes, presence, depth, colour and alpha."""
    centre, size = side * torch.rand(n, k, 2), largest * torch.sigmoid(torch.randn(n, k, 2))
    boxes = torch.cat([centre - size / 2, centre + size / 2], -1)
    glimpses = torch.rand(2, n, k, 1, g, g)
    return [t.requires_grad_() for t in (boxes, torch.rand(n, k), torch.randn(n, k), *glimpses.unbind())]


def _overlaps() -> tuple[Way, Way]:
    boxes, _, _, colour, _ = _objects(32, 12, 16, 64, 36.0)
    ways = (overlap, overlap_plain)
    fast, plain = (lambda way=way: way(colour[:, :, 0], boxes, 64, 64).sum().backward() for way in ways)
    return fast, plain


def _published(
    n: int, k: int, g: int, side: int, largest: float, plain: Callable[..., Any]
) -> tuple[Way, Way]:
    objects, size = _objects(n, k, g, side, largest), (side, side)
    return (
        lambda: render_published(*objects, size, largest)[0].sum().backward(),
        lambda: plain(*objects, size)[0].sum().backward(),
    )


def _step(memory_format: torch.memory_format = torch.channels_last) -> Way:
    config = build(Gmair.Config, "gmair", Gmair.settings("small", "multimnist"))
    model = Gmair(config, SceneShape(1, 64, 64)).train()
    model.backbone.to(memory_format=memory_format)
    optimizers, images = model.optimizers(), torch.rand(config.batch_size, 1, 64, 64).pow(4)
    return lambda: take_step(model, optimizers, images, config.steps - 1)


def _products() -> tuple[Way, Way]:
    step = _step()

    def by_onednn() -> None:
        with onednn(True):
            step()

    return by_onednn, step


def _layouts() -> tuple[Way, Way]:
    return _step(), _step(torch.contiguous_format)
