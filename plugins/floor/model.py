"""Principal components of the content of true boxes; the harness clusters them like any what-latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from objbench.detector import Detections, Detector
from objbench.errors import UsageError
from objbench.options import option
from objbench.scenes import Scenes, SceneShape
from objbench.spatial import crop


@dataclass(frozen=True)
class PcaConfig:
    """Options of the floor."""

    glimpse: int = option(14, "side in pixels that what a box holds is resampled to", low=2)
    components: int = option(32, "principal components kept, the what-latents", low=1)


class PcaOnTrueBoxes(Detector):
    """Given the true boxes, which cluster? An oracle: AP 1 and the right count by construction."""

    Config = PcaConfig
    config: PcaConfig
    oracle = True

    def __init__(self, config: PcaConfig, shape: SceneShape) -> None:
        """UsageError when there are more components than a glimpse has pixels."""
        super().__init__(config, shape)
        pixels = shape.channels * config.glimpse**2
        if config.components > pixels:
            raise UsageError(
                f"pca-gmm.components={config.components} is more than the {pixels} pixels of a glimpse; "
                "take fewer, or a larger pca-gmm.glimpse"
            )
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("axes", torch.zeros(pixels, config.components))

    def fit(self, scenes: Scenes) -> None:
        """The principal components of all objects in `scenes`, found by scikit-learn."""
        from sklearn.decomposition import PCA

        glimpses = self.glimpses(scenes)
        if len(glimpses) < self.config.components:
            raise UsageError(
                f"{len(glimpses)} objects to fit on, fewer than pca-gmm.components={self.config.components}"
            )
        pca = PCA(self.config.components, random_state=0).fit(glimpses.cpu().numpy())
        self.get_buffer("mean").copy_(torch.from_numpy(pca.mean_))
        self.get_buffer("axes").copy_(torch.from_numpy(pca.components_.T.copy()))

    def detect_scenes(self, scenes: Scenes) -> Detections:
        """The true boxes, each with a score of 1 and its principal components."""
        truth, device = scenes.truth, scenes.images.device
        what = (self.glimpses(scenes) - self.get_buffer("mean")) @ self.get_buffer("axes")
        scores = torch.ones(len(truth.image), device=device)
        return Detections(truth.images, truth.image.to(device), truth.boxes.to(device), scores, what=what)

    def glimpses(self, scenes: Scenes) -> Tensor:
        """The content of each true box, resampled to a square: [objects, pixels]."""
        truth, device = scenes.truth, scenes.images.device
        slot = torch.arange(len(truth.image)) - torch.searchsorted(
            truth.image, truth.image
        )  # place in its image
        most = int(slot.max()) + 1 if len(slot) else 1
        padded = torch.tensor([0.0, 0, 1, 1], device=device).repeat(truth.images, most, 1)
        padded[truth.image, slot] = truth.boxes.to(device)
        return crop(scenes.images, padded, self.config.glimpse)[truth.image, slot].flatten(1)
