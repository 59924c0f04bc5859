"""Boxes around patches of bright pixels; a linear autoencoder says what is in them."""

import torch
from scipy.ndimage import find_objects, label

from objbench.detector import Detections, Detector
from objbench.spatial import crop


class Spots(Detector):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.code = torch.nn.Linear(14 * 14 * shape.channels, 16)

    def training_step(self, images, step):
        found = self.detect(images)
        glimpses = crop(images[found.image], found.boxes[:, None], 14).flatten(1)
        return (found.what @ self.code.weight - glimpses).square().sum() / len(images)

    def detect(self, images):
        found = [(n, *s) for n, i in enumerate(images) for s in find_objects(label(i.amax(0).cpu() > 0.1)[0])]
        image = images.new_tensor([n for n, _, _ in found]).long()
        boxes = images.new_tensor([[x.start, y.start, x.stop, y.stop] for _, y, x in found]).reshape(-1, 4)
        what = self.code(crop(images[image], boxes[:, None], 14).flatten(1))
        return Detections(len(images), image, boxes, torch.ones_like(boxes[:, 0]), what=what)
