"""MultiMNIST (paper, section 4.1): digits at random places on a black image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from objbench.options import option
from objbench.scenes import Scenes, SceneShape, SceneSource, Split
from objbench_plugins.multimnist import digits
from objbench_plugins.multimnist.hdf5 import SceneFile
from objbench_plugins.multimnist.scatter import Scatter


@dataclass(frozen=True)
class MultiMnistConfig:
    """Options of MultiMNIST; the defaults are the paper's values."""

    height: int = option(128, "height of a scene in pixels", low=digits.SIDE + 1, high=4096)
    width: int = option(128, "width of a scene in pixels", low=digits.SIDE + 1, high=4096)
    min_digits: int = option(1, "fewest digits in a scene", low=0)
    max_digits: int = option(10, "most digits in a scene", low=1, high=100)
    min_distance: int = option(
        0,
        "pixels, along x or along y, between the centres of any two digits where 16 tries find such a place; "
        "0, as published: no rule",
        low=0,
    )
    boxes: str = option(
        "tight", "true boxes: tight to the ink over 0.2, or the 14x14 cell", choices=("tight", "cell")
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
    hdf5: str = option(
        "",
        "the published HDF5 file of scenes, which has its own sizes and digits: none of the options above can be set",
        identity=False,
        instead_of=(
            "height",
            "width",
            "min_digits",
            "max_digits",
            "min_distance",
            "boxes",
            "source",
            "digits",
            "download",
        ),
    )

    def __post_init__(self) -> None:
        if self.min_digits > self.max_digits:
            raise ValueError(f"min_digits={self.min_digits} is more than max_digits={self.max_digits}")
        step = max(self.min_distance, 1)
        room = ((self.width - digits.SIDE - 1) // step + 1) * ((self.height - digits.SIDE - 1) // step + 1)
        if self.min_distance and self.max_digits > room:
            raise ValueError(
                f"max_digits={self.max_digits} do not fit {self.min_distance} pixels apart on "
                f"{self.width}x{self.height}; there is room for {room}"
            )


class MultiMnist(SceneSource):
    """MNIST digits halved to 14x14 (2x2 means) at uniform places on a black image with one channel.

    Overlapping digits are added and clipped. The defaults are as published: 1 to 10 digits on 128x128, without a
    minimum distance. (The published generator draws 1 to 7 digits, but the paper says 10; we follow the paper.)
    Train, validation and test use disjoint digits: 64, 16 and 20 % of MNIST.

    True boxes fit each digit's own ink, also where another digit covers it; the published boxes were very probably
    made in this way. `boxes=cell` gives the 14x14 cells.

    With `hdf5`, the scenes are those of the published file, for every seed.
    """

    Config = MultiMnistConfig
    classes = tuple("0123456789")

    @classmethod
    def settings(cls, protocol: str) -> dict[str, Any]:
        """The paper's scenes are the default; the others are smaller.

        `demo` keeps digits apart, and takes the embedded ones, so that it is the same on every machine. `small` follows
        the paper: digits overlap, and all of MNIST is used where it has been fetched.
        """
        smaller: dict[str, Any] = {"height": 64, "width": 64, "max_digits": 5}
        own = {"demo": {**smaller, "min_distance": 11, "source": "embedded"}, "small": smaller}
        return own.get(protocol, {})

    @classmethod
    def fetch(cls) -> str:
        """Downloads the full MNIST into the cache if it is not there. Returns a message; UsageError when it fails."""
        cache = digits.cache_folder()
        if not cache.is_dir():
            digits.fetch_mnist()
        found = digits.read_folder(cache)
        return f"{cache}: {found.name}, {len(found.labels):,} digits, sha256 {found.checksum}"

    def __init__(self, config: MultiMnistConfig, seed: int) -> None:
        """Reads the digits, or opens the HDF5 file; UsageError with the file's name when it is not complete."""
        self._file: SceneFile | None = None
        if config.hdf5:
            self._file = SceneFile(config.hdf5)
            self.shape = self._file.shape
            return
        self.shape = SceneShape(1, config.height, config.width)
        self._digits = digits.load_digits(config.source, config.digits, config.download)
        self._scatter = Scatter(
            self._digits,
            self.shape,
            count=(config.min_digits, config.max_digits),
            min_distance=config.min_distance,
            tight=config.boxes == "tight",
            seed=seed,
        )

    def size(self, split: Split) -> int | None:
        """None (scenes are generated without end), or the number of scenes in the HDF5 file."""
        return self._file.size(split) if self._file else None

    def scenes(self, split: Split, indices: Tensor) -> Scenes:
        """The scenes at `indices` [n] int64, on the device of `indices`."""
        return self._file.scenes(split, indices) if self._file else self._scatter.scenes(split, indices)

    def fingerprint(self) -> dict[str, Any]:
        """The digits, their number in each split and their checksum; or the number and checksum of the HDF5 file."""
        return self._file.fingerprint() if self._file else self._digits.fingerprint()

    def origin(self, split: Split, index: int) -> str:
        """File, part and row of a scene of an HDF5 file."""
        return self._file.origin(split, index) if self._file else ""
