"""Scatters digits over black images, all scenes of a batch at once, with counter-based random numbers.

Every random number of a scene is a hash of (seed, split, index, position in the scene's sequence): SplitMix64
(Steele, Lea and Flood 2014). So a scene is the same in every batch, process and order, and on every device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from objbench.scenes import GroundTruth, Scenes, SceneShape, Split
from objbench_plugins.multimnist.digits import SIDE, SPLITS, Digits, ink_boxes

CANDIDATES = 16
"""How many places are tried for a digit when there is a minimum distance."""

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # as a signed 64-bit integer; so are the two below
_MULTIPLIERS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_LOW = 0xFFFFFFFF


class Glyphs(NamedTuple):
    """The digits of one split, as tensors."""

    pixels: Tensor  # [n, 196] uint8
    boxes: Tensor  # [n, 4] float32, xyxy in pixels within the cell
    labels: Tensor  # [n] int64

    @staticmethod
    def of(digits: Digits, split: Split, tight: bool) -> Glyphs:
        """The digits of `split`; their boxes fit the ink if `tight`, else they are the 14x14 cell."""
        chosen = digits.parts[split]
        images = digits.images[chosen]
        cell = torch.tensor([0, 0, SIDE, SIDE]).expand(len(chosen), 4)
        return Glyphs(
            pixels=torch.from_numpy(images.reshape(-1, SIDE * SIDE)),
            boxes=(torch.from_numpy(ink_boxes(images)) if tight else cell).float(),
            labels=torch.from_numpy(digits.labels[chosen]).long(),
        )

    def to(self, device: torch.device) -> Glyphs:
        return Glyphs(*(part.to(device) for part in self))


class Scatter:
    """Generates the scenes of one seed."""

    def __init__(
        self,
        digits: Digits,
        shape: SceneShape,
        *,
        count: tuple[int, int],
        min_distance: int,
        tight: bool,
        seed: int,
    ) -> None:
        """count: the lowest and highest number of digits in a scene. Other parameters: see `MultiMnistConfig`."""
        self.shape, self.count, self.min_distance, self.seed = shape, count, min_distance, seed
        self._glyphs = {(split, torch.device("cpu")): Glyphs.of(digits, split, tight) for split in SPLITS}

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, made on the device of `indices`."""
        _, height, width = self.shape
        fewest, most = self.count
        tries = CANDIDATES if self.min_distance else 1
        glyphs = self._on(split, indices.device)

        words = random_words(self.seed, split, indices, 1 + most + most * tries)  # [n, words]
        count_word, digit_words, place_words = words.split([1, most, most * tries], dim=1)
        counts = fewest + _below(most - fewest + 1, count_word >> 32)  # [n, 1]
        digit = _below(len(glyphs.labels), digit_words >> 32)  # [n, most]
        places = torch.stack(  # the published generator leaves out the last column and row
            [_below(width - SIDE, place_words >> 32), _below(height - SIDE, place_words)], dim=-1
        )
        corners = self._spread(places.view(len(indices), most, tries, 2))  # [n, most, 2] x, y

        image, slot = torch.nonzero(torch.arange(most, device=indices.device) < counts, as_tuple=True)
        digit, corner = digit[image, slot], corners[image, slot]  # [m], [m, 2]
        truth = GroundTruth(
            images=len(indices),
            image=image,
            boxes=glyphs.boxes[digit] + corner.repeat(1, 2),
            labels=glyphs.labels[digit],
        )
        side = torch.arange(SIDE, device=indices.device)
        cell = (side[:, None] * width + side).flatten()  # [196] where a cell's pixels lie from its corner
        start = (image * height + corner[:, 1]) * width + corner[:, 0]  # [m]
        canvas = torch.zeros(len(indices) * height * width, device=indices.device)
        # Sums of integers are exact in any order, so this is deterministic on a GPU too.
        canvas.index_add_(0, (start[:, None] + cell).flatten(), glyphs.pixels[digit].float().flatten())
        return Scenes(canvas.clamp_(max=255).div_(255).view(len(indices), 1, height, width), truth)

    def _spread(self, places: Tensor) -> Tensor:
        """Chooses one place [n, most, 2] for each digit from its candidates [n, most, tries, 2].

        This is the first candidate that is at least `min_distance` away, along x or along y, from all earlier digits;
        if there is none, the farthest candidate.
        """
        if not self.min_distance:
            return places[:, :, 0]
        chosen = [places[:, 0, 0]]
        for j in range(1, places.shape[1]):
            candidates = places[:, j]  # [n, tries, 2]
            apart = (candidates[:, :, None] - torch.stack(chosen, dim=1)[:, None]).abs().amax(-1).amin(-1)
            best = apart.clamp(max=self.min_distance).argmax(dim=1)  # the first of equals
            chosen.append(candidates[torch.arange(len(best), device=best.device), best])
        return torch.stack(chosen, dim=1)

    def _on(self, split: Split, device: torch.device) -> Glyphs:
        if (split, device) not in self._glyphs:
            self._glyphs[split, device] = self._glyphs[split, torch.device("cpu")].to(device)
        return self._glyphs[split, device]


def random_words(seed: int, split: Split, indices: Tensor, count: int) -> Tensor:
    """The first `count` random 64-bit words of each scene: [n, count] int64, with uniform bits."""
    stream = _mix(_mix(torch.tensor(seed)) + SPLITS.index(split)).to(indices.device)
    scene = _mix(stream + indices * _GAMMA)
    return _mix(scene[:, None] + torch.arange(1, count + 1, device=indices.device) * _GAMMA)


def _mix(word: Tensor) -> Tensor:
    """SplitMix64's finaliser. int64 products wrap; after a right shift, the copied sign bits must be cleared."""
    word = (word ^ ((word >> 30) & (2**34 - 1))) * _MULTIPLIERS[0]
    word = (word ^ ((word >> 27) & (2**37 - 1))) * _MULTIPLIERS[1]
    return word ^ ((word >> 31) & (2**33 - 1))


def _below(limit: int, word: Tensor) -> Tensor:
    """Uniform integers 0..limit-1 from the low 32 bits of `word`."""
    return ((word & _LOW) * limit) >> 32
