"""What tests of captured training steps share: the detectors in all their phases, and a watch for what waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from objbench.detector import Detector
from objbench.options import build
from objbench.plugins import load_plugins, load_target
from objbench.scenes import SceneShape
from objbench.score.random_state import seed_everything
from objbench.train.steps import InitialGroup, Steps

WAITS = {
    "_local_scalar_dense": "reads a value back (item, float, bool, if)",
    "equal": "reads a value back",
    "is_nonzero": "reads a value back",
    "nonzero": "has a size that depends on values",
    "masked_select": "has a size that depends on values",
    "_unique2": "has a size that depends on values",
    "unique_dim": "has a size that depends on values",
    "unique_consecutive": "has a size that depends on values",
    "repeat_interleave": "has a size that depends on values",
    "bincount": "has a size that depends on values",
    "lift_fresh": "copies Python numbers from the host (torch.tensor, new_tensor, a list as index)",
    "lift_fresh_copy": "copies Python numbers from the host",
}


class Waits(TorchDispatchMode):
    """Notes, in `found`, every operation that a capture does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.found.append(f"{func}: {WAITS[name]}")
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            self.found.append(f"{func} with a mask: has a size that depends on values")
        if name == "_fused_adam_" and isinstance(args[0][0], FakeTensor):
            return None  # torch cannot do that without values
        out = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            devices = {t.device.type for t in (*args, out) if isinstance(t, Tensor)}
            if len(devices) > 1:
                self.found.append(f"{func}: copies from one device to another")
        return out


def what_waits(work: Callable[[], object]) -> list[str]:
    """What in `work` a capture does not allow."""
    with Waits() as waits:
        work()
    return waits.found


@dataclass(frozen=True)
class Case:
    """A detector with settings under which it goes through many phases in few steps."""

    model: str
    protocol: str
    options: dict[str, Any]
    side: int = 64
    channels: int = 1

    def detector(self) -> Detector:
        """A new one in training mode, every random generator seeded before."""
        seed_everything(0)
        cls = load_target(load_plugins().model(self.model).target)
        config = build(cls.Config, self.model, cls.settings(self.protocol, "multimnist"), self.options)
        made: Detector = cls(config, SceneShape(self.channels, self.side, self.side)).train()
        return made

    def images(self, step: int) -> Tensor:
        """The images of a step."""
        batch = self.options["batch_size"]
        dice = torch.Generator().manual_seed(step)
        return torch.rand(batch, self.channels, self.side, self.side, generator=dice).pow(4)


SMALL = [
    Case("gmair", "demo", dict(
        steps=24, batch_size=4, warmup_images=2, gate_step=5, mixture_start=10, detach_steps=15, overlap_steps=19,
        lr_end=0.1,
    )),
    Case("spair", "demo", dict(
        steps=16, batch_size=4, warmup_images=2, gate_step=5, where_frozen_steps=10, lr_end=0.5,
    )),
    Case("space", "demo", dict(
        steps=24, batch_size=4, warmup_images=2, fixed_alpha_until=0.2, gate_from=0.4, boundary_from=0.6,
        boundary_until=0.8, lr_end=0.1,
    )),
]  # fmt: skip
"""Every switch of every phase is on and off once."""
PAPER = [
    Case("gmair", "paper", dict(batch_size=16, gate_cells=16, gate_step=1_000), side=128, channels=3),
    Case("spair", "paper", dict(batch_size=16, gate_cells=16, gate_step=500), side=128, channels=3),
    Case("space", "paper", dict(batch_size=12, gate_cells=32, gate_from=0.1), side=128, channels=3),
]


def first_steps(detector: Detector) -> list[int]:
    """The first step of every phase."""
    first: dict[Any, int] = {}
    stride = max(1, detector.config.steps // 40_000)
    for step in range(0, detector.config.steps, stride):
        first.setdefault(detector.phase(step), step)
    return list(first.values())


def hold(detector: Detector, step: int) -> None:
    """Gives the detector its schedule as captured steps do: in tensors."""
    device = next(detector.parameters()).device
    values = {
        n: torch.full((), v, dtype=torch.float64, device=device) for n, v in detector.schedule(step).items()
    }
    detector.held = values


def steps_of(detector: Detector, kind: Callable[..., Any] = Steps, *more: Any) -> Any:
    """Eager or other steps of a new detector."""
    optimizers = detector.optimizers()
    return kind(detector, optimizers, InitialGroup.of(optimizers), *more)


def some(cases: list[Case]) -> list[Any]:
    """As parameters of a test; those of the paper's size are slow."""
    return [
        pytest.param(
            case, id=f"{case.model}-{case.protocol}", marks=[pytest.mark.slow] if case in PAPER else []
        )
        for case in cases
    ]
