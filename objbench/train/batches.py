"""Which scenes each step uses, and a thread that makes batches in advance."""

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
"""How many batches are made in advance at most."""


class Ahead:
    """Makes the images of the next steps on a separate thread, in pinned memory when the device is a GPU."""

    def __init__(self, make: Callable[[int], Tensor], steps: Iterable[int], device: torch.device) -> None:
        """make: a pure function that returns the images of a step. steps: in the order in which they will be used."""
        self.lock = threading.Lock()
        """The thread holds it while it makes a batch. While another thread holds it, no batch is made."""
        self._make, self._steps, self._device = make, iter(steps), device
        self._made: queue.Queue[tuple[int, Tensor | BaseException]] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="objbench-batches", daemon=True)
        self._thread.start()

    def __call__(self, step: int) -> Tensor:
        """The images of the next step, which must be `step`. An error while making them is raised here."""
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
                    except BaseException as error:  # any error: the training loop raises it
                        images = error
                if not self._put(step, images) or isinstance(images, BaseException):
                    return

    def _put(self, step: int, images: Tensor | BaseException) -> bool:
        """Waits for space in the queue; False when the queue was closed."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put((step, images), timeout=0.1)
                return True
        return False


def batch_indices(size: int | None, seed: int, step: int, batch: int) -> Tensor:
    """The scenes of one step, [batch] int64: a pure function of its arguments.

    A split without end (size None) is read in order. A split of `size` scenes is read in a new order every epoch.
    """
    places = torch.arange(step * batch, (step + 1) * batch)
    if size is None:
        return places
    epochs = range(step * batch // size, ((step + 1) * batch - 1) // size + 1)
    return torch.cat([_order(size, seed, e)[places[places // size == e] % size] for e in epochs])


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(size))
