"""Options of our detectors that cannot go together are refused before a run, with one line."""

from collections.abc import Callable
from typing import Any

import pytest

from objbench.cells.matrix import check_fit, check_options, matrix
from objbench.cells.overrides import build_model_config
from objbench.cells.protocols import PROTOCOLS, protocol
from objbench.errors import UsageError
from objbench.guarded import PluginFailed
from objbench.plugins import Registry, load_plugins, load_target
from objbench.scenes import SceneShape

REGISTRY = load_plugins()
OURS = [name for name, spec in REGISTRY.models.items() if spec.check]

REFUSED = [
    ("gmair", {"gate_cells": "65"}, "gate_cells=65 is more than the 64 cells of an image of 64x64"),
    ("gmair", {"gate_step": "50", "steps": "50"}, "gate_step=50 is not before the end of training (50)"),
    ("gmair", {"gate_step": "9999"}, "gate_step=9999 is not before the end of training (2400)"),
    (
        "gmair",
        {"warmup_images": "4", "gate_step": "0"},
        "warmup_images=4 are used until gating starts, but gate_",
    ),
    ("gmair", {"warmup_images": "17"}, "warmup_images=17 is more than batch_size=16"),
    (
        "gmair",
        {"start_with": "kmeans", "mixture_start": "0"},
        "start_with=kmeans needs mixture_start above 0",
    ),
    ("gmair", {"backbone_width": "12"}, "backbone_width=12 is above 8 and not a multiple of 8"),
    ("gmair", {"trim": "1"}, "trim=1 is not below 1"),
    ("spair", {"gate_cells": "37"}, "gate_cells=37 is more than the 36 cells of an image of 64x64"),
    ("spair", {"gate_cells": "65", "stride": "8"}, "gate_cells=65 is more than the 64 cells"),
    ("spair", {"gate_step": "2000"}, "gate_step=2000 is not before the end of training (1200)"),
    ("spair", {"where_frozen_steps": "10", "steps": "10"}, "where_frozen_steps=10 is not below steps=10"),
    ("spair", {"warmup_images": "33"}, "warmup_images=33 is more than batch_size=32"),
    ("spair", {"trim": "1.5"}, "trim=1.5 is not below 1"),
    ("space", {"gate_cells": "17", "cell_size": "16"}, "gate_cells=17 is more than the 16 cells"),
    ("space", {"gate_from": "1"}, "gate_from=1 is not before the end of training (1)"),
    ("space", {"presence_until": "1.5"}, "presence_until=1.5 is above 1, the end of training"),
    ("space", {"fixed_alpha_until": "400"}, "fixed_alpha_until=400 is above 1, the end of training"),
    ("space", {"boundary_from": "1", "boundary_until": "1"}, "boundary_from=1 is the end of training"),
    ("space", {"warmup_images": "8", "gate_from": "0"}, "warmup_images=8 are used until gating starts"),
    ("space", {"scale_std": "1e4"}, "its options lead to OverflowError: math range error"),
    ("blobs", {"ink": "1"}, "ink=1 is not below 1"),
    ("blobs", {"pixels": "4097"}, "pixels=4097 is more than an image of 64x64 has"),
    ("slot-attention", {"warmup": "50", "steps": "50"}, "warmup=50 is not below steps=50"),
    ("slot-attention", {"grid": "65"}, "grid=65 is larger than the image, which is 64x64"),
    ("slot-attention", {"coarse": "65"}, "coarse=65 is more than the sides of the image, which is 64x64"),
]


def planned(
    model: str, given: dict[str, str], side: int = 64, protocol: str = "demo", data: str = "any"
) -> None:
    """Checks what a run checks before it begins."""
    config = build_model_config(REGISTRY, model, protocol, data, {model: given})
    check_options(REGISTRY.model(model), config, SceneShape(3, side, side), given=given)
    check_fit(load_target(REGISTRY.model(model).target), config, SceneShape(3, side, side), model, "any")


@pytest.mark.parametrize(("model", "given", "says"), REFUSED)
def test_what_cannot_go_together_is_refused_in_a_line(model: str, given: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned(model, given)
    assert says in str(caught.value)
    assert model in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, PluginFailed)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("gmair", {"gate_cells": "64", "gate_step": "49", "steps": "50", "warmup_images": "16"}),
        (
            "gmair",
            {"steps": "3", "batch_size": "2"},
        ),  # schedules of the settings are longer; nobody asked for them
        ("gmair", {"mixture_start": "50", "steps": "20"}),  # a warning in the record
        ("spair", {"gate_cells": "36", "where_frozen_steps": "9", "steps": "10", "gate_step": "9"}),
        ("spair", {"steps": "3", "batch_size": "2"}),
        ("space", {"presence_from": "1", "presence_until": "1", "gate_from": "0.99", "gate_cells": "64"}),
        ("space", {"steps": "3", "cell_size": "32"}),
        ("blobs", {"ink": "0.99", "pixels": "4096"}),
        ("slot-attention", {"warmup": "49", "steps": "50", "grid": "64", "coarse": "64"}),
        ("slot-attention", {"steps": "3"}),
    ],
)
def test_what_goes_together_is_taken(model: str, given: dict[str, str]) -> None:
    planned(model, given)


@pytest.mark.parametrize("model", OURS)
def test_settings_of_every_protocol_pass(model: str) -> None:
    for name in PROTOCOLS:
        for data in ("multimnist", "fruit2d-sim", "any"):
            planned(model, {}, 128 if name == "paper" else 64, name, data)


def test_a_run_asks_the_check_of_the_spec() -> None:
    with pytest.raises(UsageError, match=r"^gmair: gate_cells=65 is more than the 64 cells"):
        matrix(REGISTRY, ["gmair"], ["multimnist"], [0], protocol("demo"), {"gmair": {"gate_cells": "65"}})


def test_a_check_that_fails_is_the_plugins_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> str:
        raise KeyError("steps")

    known: Registry = load_plugins()
    targets: dict[str, Callable[..., str]] = {known.model("gmair").check: fails}
    monkeypatch.setattr("objbench.cells.matrix.load_target", targets.__getitem__)
    with pytest.raises(PluginFailed, match="'gmair' failed in the check of its options: KeyError: 'steps'"):
        check_options(known.model("gmair"), None, SceneShape(1, 64, 64), given=())


def test_options_of_clusterers_are_checked_too() -> None:
    words = {"iic": {"least_crop": "1.3"}}
    with pytest.raises(UsageError, match=r"^iic: least_crop=1\.3 is above most_crop=1\.2$"):
        matrix(REGISTRY, ["blobs+iic"], ["multimnist"], [0], protocol("demo"), words)
