"""Slot Attention in plain numpy, one slot after another, for tests (Locatello et al. 2020, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EPSILON = 1e-8


def layer_norm(values: Floats, weight: Floats, bias: Floats) -> Floats:
    """Of the last axis."""
    centred = values - values.mean(-1, keepdims=True)
    normed: Floats = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * weight + bias
    return normed


def gru(x: Floats, h: Floats, w: Mapping[str, Floats]) -> Floats:
    """Cho et al. 2014, as torch has it: reset, update and new gate, each with two biases."""
    xs = np.split(w["gru.weight_ih"] @ x + w["gru.bias_ih"], 3)
    hs = np.split(w["gru.weight_hh"] @ h + w["gru.bias_hh"], 3)
    reset, update = (1 / (1 + np.exp(-(a + b))) for a, b in zip(xs[:2], hs[:2], strict=True))
    new = np.tanh(xs[2] + reset * hs[2])
    result: Floats = (1 - update) * new + update * h
    return result


def far_apart(features: Floats, k: int) -> list[int]:
    """The first feature of [N, F], and one after another the one whose nearest chosen feature is farthest away."""
    chosen = [0]
    while len(chosen) < k:
        nearest = [min(float(((f - features[c]) ** 2).sum()) for c in chosen) for f in features]
        chosen.append(nearest.index(max(nearest)))
    return chosen


def slots_of(
    features: Floats, noise: Floats, w: Mapping[str, Floats], iterations: int, seeds: str = "noise"
) -> Floats:
    """The slots [K, D] of the features [N, F] of one image, from noise [K, D].

    w: the weights of `attention.SlotAttention`, as its state_dict names them.
    """
    inputs = layer_norm(features, w["norm_inputs.weight"], w["norm_inputs.bias"])
    keys = [w["key.weight"] @ feature for feature in inputs]
    values = [w["value.weight"] @ feature for feature in inputs]
    slots = [w["mu"][0, 0] + np.exp(w["log_sigma"][0, 0]) * one for one in noise]
    if seeds == "far":
        slots = [
            slot + np.tanh(values[i]) for slot, i in zip(slots, far_apart(inputs, len(noise)), strict=True)
        ]
    for _ in range(iterations):
        queries = [
            w["query.weight"] @ layer_norm(s, w["norm_slots.weight"], w["norm_slots.bias"]) / np.sqrt(len(s))
            for s in slots
        ]
        attention = np.zeros((len(keys), len(slots)))
        for i, key in enumerate(keys):  # each feature is shared out among the slots
            shares = np.exp(np.array([key @ query for query in queries]))
            attention[i] = shares / shares.sum() + EPSILON
        for k, slot in enumerate(slots):
            weights = attention[:, k] / attention[:, k].sum()
            update = np.sum([weight * value for weight, value in zip(weights, values, strict=True)], axis=0)
            new = gru(update, slot, w)
            hidden = w["mlp.0.weight"] @ layer_norm(new, w["norm_hidden.weight"], w["norm_hidden.bias"])
            hidden = np.maximum(hidden + w["mlp.0.bias"], 0)
            slots[k] = new + w["mlp.2.weight"] @ hidden + w["mlp.2.bias"]
    return np.array(slots)
