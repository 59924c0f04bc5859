"""A batch in parts, where all of it at once needs too much memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result", Tensor, tuple[Tensor, ...])
"""A tensor or several."""


def in_parts(
    function: Callable[..., Result], tensors: Sequence[Tensor], at_once: int, recompute: bool = True
) -> Result:
    """`function(*tensors)`, at most `at_once` images at a time.

    function: takes tensors [images, ...] and returns a tensor [images, ...] or a tuple of them, each image apart from
    the others. On a GPU, or when all images fit, it is called once.
    recompute: intermediate results of a part are not kept for the gradient, but computed again in the backward pass;
    `function` must then use no random numbers.
    """
    if at_once >= len(tensors[0]) or tensors[0].device.type != "cpu":
        return function(*tensors)
    parts = zip(*(torch.split(tensor, at_once) for tensor in tensors), strict=True)
    if recompute:
        function = functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    results = [function(*part) for part in parts]
    if isinstance(results[0], Tensor):
        return torch.cat(results)
    return tuple(torch.cat(of_all) for of_all in zip(*results, strict=True))
