"""The networks of AIR around its recurrent one."""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = 32
"""Channels of the convolutions of `ImageEncoder`."""
PATCH = 4
"""Side of the patches of its first layer, in pixels; the second halves the resolution."""


class ImageEncoder(nn.Sequential):
    """Features of an image, not published: patches, a convolution and a layer. [n, channels, *size] -> [n, out]."""

    def __init__(self, channels: int, size: tuple[int, int], out: int) -> None:
        rows, columns = ((side + 2 * PATCH - 1) // (2 * PATCH) for side in size)
        padding = [(-side) % PATCH for side in size]
        super().__init__(
            nn.ZeroPad2d((0, padding[1], 0, padding[0])),
            nn.Conv2d(channels, CHANNELS, PATCH, PATCH), nn.ReLU(inplace=True),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1), nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(CHANNELS * rows * columns, out), nn.ReLU(inplace=True),
        )  # fmt: skip


class Baseline(nn.Module):
    """Says in each step what the rest will cost; a recurrent network that sees what the model's sees."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(inputs, hidden)
        self.read = nn.Linear(hidden, 1)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The cost [n] that is expected of inputs [n, inputs], and the next state."""
        state = self.cell(inputs, state)
        return self.read(state[0])[:, 0], state
