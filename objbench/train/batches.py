"""Which scenes a step is shown, and batches made ahead of time on a thread."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

AHEAD = 8
"""Batches that wait to be used."""


class Ahead:
    """Makes the images of coming steps on a thread of its own, in pinned memory where they go to a GPU."""

    def __init__(self, make: Callable[[int], Tensor], steps: Iterable[int], device: torch.device) -> None:
        """make: the images of a step, a pure function; steps: which, in the order in which they will be used."""
        self.lock = threading.Lock()
        """Held while a batch is made. Whoever holds it knows that the thread does nothing."""
        self._make, self._steps, self._device = make, iter(steps), device
        self._made: queue.Queue[tuple[int, Tensor | BaseException]] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="objbench-batches", daemon=True)
        self._thread.start()

    def __call__(self, step: int) -> Tensor:
        """The images of the next step, which must be `step`; raises what making them raised."""
        made, images = self._made.get()
        if isinstance(images, BaseException):
            raise images
        assert made == step, f"the next batch is that of step {made}, not of {step}"
        return images

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        on_gpu = self._device.type == "cuda"
        with (
            torch.cuda.device(self._device) if on_gpu else contextlib.nullcontext()
        ):  # each thread has its own
            for step in self._steps:
                images: Tensor | BaseException
                with self.lock:
                    try:
                        images = self._make(step)
                        images = images.pin_memory() if on_gpu else images
                    except BaseException as error:  # whatever it is, it is for the training to raise
                        images = error
                if not self._put(step, images) or isinstance(images, BaseException):
                    return

    def _put(self, step: int, images: Tensor | BaseException) -> bool:
        """Waits for a place; False when there is nobody to use it any more."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put((step, images), timeout=0.1)
                return True
        return False


def batch_indices(size: int | None, seed: int, step: int, batch: int) -> Tensor:
    """The scenes of one step, [batch] int64: a pure function of its arguments.

    A split without end is read in order; one of `size` scenes in a new order every epoch.
    """
    places = torch.arange(step * batch, (step + 1) * batch)
    if size is None:
        return places
    epochs = range(step * batch // size, ((step + 1) * batch - 1) // size + 1)
    return torch.cat([_order(size, seed, e)[places[places // size == e] % size] for e in epochs])


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(size))
