"""AIR's inference and loss in plain numpy, one image, one step and one pixel after another, for tests.

It takes the noise that it is given, and the networks' outputs are its own: an LSTM and perceptrons written out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Noise(NamedTuple):
    """What one image's samples are made of, for each of N steps."""

    logistic: Floats  # [N] added to the logit of presence
    where: Floats  # [N, 3] standard normal
    what: Floats  # [N, A] standard normal


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x))."""
    result: Floats = 1 / (1 + np.exp(-x))
    return result


def softplus(x: Floats) -> Floats:
    """log(1 + exp(x))."""
    result: Floats = np.log1p(np.exp(x))
    return result


def perceptron(x: Floats, w: Mapping[str, Floats], name: str) -> Floats:
    """Layers with ReLU between them; weights are named as torch's Sequential names them."""
    layers = sorted({int(key.split(".")[1]) for key in w if key.startswith(f"{name}.")})
    for layer in layers:
        x = w[f"{name}.{layer}.weight"] @ x + w[f"{name}.{layer}.bias"]
        if layer != layers[-1]:
            x = np.maximum(x, 0)
    return x


def lstm(x: Floats, h: Floats, c: Floats, w: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """Hochreiter and Schmidhuber 1997, as torch has it: input, forget, cell and output gate."""
    gates = w["cell.weight_ih"] @ x + w["cell.bias_ih"] + w["cell.weight_hh"] @ h + w["cell.bias_hh"]
    enter, forget, cell, out = np.split(gates, 4)
    c = sigmoid(forget) * c + sigmoid(enter) * np.tanh(cell)
    return sigmoid(out) * np.tanh(c), c


def pixel(picture: Floats, y: float, x: float) -> float:
    """Bilinear, in pixels, the centre of the first at .5; black outside."""
    total = 0.0
    for i in range(picture.shape[0]):
        for j in range(picture.shape[1]):
            total += max(0.0, 1 - abs(y - i - 0.5)) * max(0.0, 1 - abs(x - j - 0.5)) * picture[i, j]
    return total


def glimpse(image: Floats, box: Floats, g: int) -> Floats:
    """The content of a box [4] xyxy of an image [h, w]: [g, g]."""
    x0, y0, x1, y1 = box
    at = (np.arange(g) + 0.5) / g
    return np.array([[pixel(image, y0 + v * (y1 - y0), x0 + u * (x1 - x0)) for u in at] for v in at])


def painted(glimpse: Floats, box: Floats, size: tuple[int, int]) -> Floats:
    """A glimpse [g, g] in its box, on black: [h, w]."""
    (x0, y0, x1, y1), g = box, len(glimpse)
    rows, columns = (np.arange(side) + 0.5 for side in size)
    return np.array(
        [[pixel(glimpse, (y - y0) / (y1 - y0) * g, (x - x0) / (x1 - x0) * g) for x in columns] for y in rows]
    )


def normal_kl(mean: Floats, std: Floats, prior_mean: float = 0.0, prior_std: float = 1.0) -> float:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)), summed."""
    one = np.log(prior_std / std) + (std**2 + (mean - prior_mean) ** 2) / (2 * prior_std**2) - 0.5
    return float(one.sum())


def negative_elbo(
    image: Floats,
    noise: Noise,
    w: Mapping[str, Floats],
    *,
    glimpse_side: int,
    difference: bool,
    temperature: float,
    presence_bias: float,
    colour_bias: float,
    sigma: float,
    scale: tuple[float, float],
    log_odds: float,
) -> dict[str, float]:
    """The four terms for one grey image [h, w] that the recurrent network sees as it is, without an encoder.

    scale: mean and deviation of the prior of the scale logit. log_odds: of one object more.
    """
    height, width = image.shape
    a = noise.what.shape[1]
    h = c = np.zeros(w["cell.weight_hh"].shape[1])
    latents, canvas, asked = np.zeros(3 + a + 1), np.zeros_like(image), 1.0
    terms = {"recon": 0.0, "presence": 0.0, "where": 0.0, "what": 0.0}
    log_more, log_stop = -float(softplus(np.array(-log_odds))), -float(softplus(np.array(log_odds)))
    for i in range(len(noise.logistic)):
        seen = image - canvas if difference else image
        h, c = lstm(np.concatenate([seen.ravel(), latents]), h, c, w)
        raw = w["head.weight"] @ h + w["head.bias"]
        logit, mean, std = raw[0] + presence_bias, raw[1:4], softplus(raw[4:7])
        p = float(sigmoid(logit))
        # KL of a Bernoulli, where this step is reached
        terms["presence"] += asked * (p * (math.log(p) - log_more) + (1 - p) * (math.log(1 - p) - log_stop))
        present = asked * float(sigmoid((logit + noise.logistic[i]) / temperature))
        where = mean + std * noise.where[i]
        side, middle = float(sigmoid(where[0])), 0.5 + 0.5 * np.tanh(where[1:])
        box = np.concatenate([middle - side / 2, middle + side / 2]) * [width, height, width, height]
        terms["where"] += present * (normal_kl(mean[:1], std[:1], *scale) + normal_kl(mean[1:], std[1:]))
        code = perceptron(glimpse(image, box, glimpse_side).ravel(), w, "what_encoder")
        what_mean, what_std = code[:a], softplus(code[a:])
        what = what_mean + what_std * noise.what[i]
        terms["what"] += present * normal_kl(what_mean, what_std)
        shown = sigmoid(perceptron(what, w, "decoder") + colour_bias).reshape(glimpse_side, glimpse_side)
        canvas = canvas + present * painted(shown, box, (height, width))
        latents, asked = np.concatenate([where, what, [present]]), present
    terms["recon"] = float(((image - canvas) ** 2).sum() / (2 * sigma**2))
    return terms
