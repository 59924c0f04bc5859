"""MNIST (paper, Table 2, first block): one digit an image, at its full size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from objbench.options import option
from objbench.scenes import GroundTruth, Scenes, SceneShape, SceneSource, Split
from objbench_plugins.multimnist import digits

SIDE = 2 * digits.SIDE
"""Pixels along each side of an image."""


@dataclass(frozen=True)
class MnistConfig:
    """Options of MNIST."""

    boxes: str = option(
        "whole", "true boxes: the whole image, or tight to the ink over 0.2", choices=("whole", "tight")
    )
    source: str = option(
        "auto",
        "embedded: 5,000 digits; full: all 70,000 or an error; auto: all if they have been fetched",
        choices=("auto", "full", "embedded"),
        identity=False,
    )
    digits: str = option(
        "",
        "folder of MNIST's four idx or idx.gz files; goes before `source`",
        identity=False,
        instead_of=("source", "download"),
    )
    download: bool = option(False, "let auto and full download MNIST into the cache", identity=False)


class Mnist(SceneSource):
    """MNIST digits of 28x28 on black, one an image.

    Train, validation and test are the first five sixths of MNIST's own training set, its last sixth, and MNIST's
    own test set; of the 5,000 embedded digits they are 64, 16 and 20 % of each class. The order is MNIST's;
    the seed changes nothing.
    """

    Config = MnistConfig
    classes = tuple("0123456789")
    shape = SceneShape(1, SIDE, SIDE)

    @classmethod
    def settings(cls, protocol: str) -> dict[str, Any]:
        """The published files under `paper`; the others are the same on every machine."""
        return {} if protocol == "paper" else {"source": "embedded"}

    @classmethod
    def fetch(cls) -> str:
        """Gets the full MNIST into the cache that it shares with MultiMNIST. UsageError when it cannot."""
        from objbench_plugins.multimnist.source import MultiMnist

        return MultiMnist.fetch()

    def __init__(self, config: MnistConfig, seed: int) -> None:
        """Reads the digits; UsageError, naming the file, when one is not whole."""
        self._tight = config.boxes == "tight"
        self._digits = digits.load_digits(
            config.source, config.digits, config.download, whole=True, data="mnist"
        )

    def size(self, split: Split) -> int:
        """How many digits the split has."""
        return len(self._digits.parts[split])

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The digits at `indices` [n] int64, on the device that `indices` are on; IndexError beyond the last."""
        chosen = self._digits.parts[split][indices.cpu().numpy()]
        images = self._digits.images[chosen]
        boxes = torch.tensor([[0.0, 0, SIDE, SIDE]]).repeat(len(chosen), 1)
        if self._tight:
            boxes = torch.from_numpy(digits.ink_boxes(images)).float()
        labels = torch.from_numpy(self._digits.labels[chosen].astype("int64"))
        pixels = (torch.from_numpy(images).to(indices.device).float() / 255)[:, None]
        return Scenes(pixels, GroundTruth(len(chosen), torch.arange(len(chosen)), boxes, labels))

    def fingerprint(self) -> dict[str, Any]:
        """Which digits, how many a split, and their checksum."""
        whole = self._digits
        digest = hashlib.sha256()
        for split in digits.SPLITS:
            digest.update(
                whole.images[whole.parts[split]].tobytes() + whole.labels[whole.parts[split]].tobytes()
            )
        counts = {split: len(whole.parts[split]) for split in digits.SPLITS}
        return {"digits": whole.name, "counts": counts, "sha256": digest.hexdigest()}
