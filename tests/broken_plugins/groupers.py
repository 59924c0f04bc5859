"""A sound clusterer, and one for each check of the kit that breaks what the check looks for."""

import torch

from objbench import ClustererSpec, hookimpl
from objbench.clusterer import Clusterer, Cut


class Sound(Clusterer):
    """Two clusters: objects that are darker than the mean one, and the others."""

    def __init__(self, config, shape):
        super().__init__(config, shape)
        self.register_buffer("middle", torch.zeros(()))
        self.few = False

    def fit(self, objects):
        self.few = len(objects) < 2
        self.middle.fill_(float("inf") if self.few else float(shades(objects).mean()))

    def assign(self, objects):
        return (shades(objects) > self.middle).long()

    def warnings(self):
        return ["too few objects: all are in cluster 0"] if self.few else []


def shades(objects):
    return objects.glimpses.flatten(1).double().mean(1)


class Settings(Sound):
    @classmethod
    def settings(cls, protocol, data):
        return {"cluster": 3} if protocol == "paper" else {}


class CutOfNothing(Sound):
    @classmethod
    def cut(cls, config):
        return Cut(0)


class Many(Sound):
    def assign(self, objects):
        return super().assign(objects) + self.config.clusters


class Grey(Sound):
    def __init__(self, config, shape):
        super().__init__(config, shape)
        if shape.channels != 1:
            raise RuntimeError("grey only")


class Clock(Sound):
    """Its threshold hangs on how many were fitted before."""

    fitted = 0

    def fit(self, objects):
        super().fit(objects)
        Clock.fitted += 1
        self.middle.fill_(float("inf") if Clock.fitted % 2 else float("-inf"))


class Draws(Sound):
    def assign(self, objects):
        return torch.randint(0, 2, (len(objects),))


class Relative(Sound):
    def assign(self, objects):
        return (shades(objects) > shades(objects).mean()).long()


class Forgets(Sound):
    def fit(self, objects):
        super().fit(objects)
        self.flips = 1

    def assign(self, objects):
        return getattr(self, "flips", 0) - super().assign(objects).neg()


class Silent(Sound):
    def warnings(self):
        return []


class Order(Sound):
    def assign(self, objects):
        return torch.arange(len(objects)) % 2


BROKEN = {
    "settings": Settings,
    "cut": CutOfNothing,
    "clusters": Many,
    "channels": Grey,
    "deterministic": Clock,
    "assign": Draws,
    "others": Relative,
    "state": Forgets,
    "few": Silent,
    "duplicates": Order,
}
"""The check that each breaks."""


@hookimpl
def objbench_clusterers():
    broken = [
        ClustererSpec(f"bad-{name}", "broken", f"groupers:{cls.__name__}") for name, cls in BROKEN.items()
    ]
    return [ClustererSpec("sound", "breaks nothing", "groupers:Sound"), *broken]
