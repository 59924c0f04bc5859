"""Checks of a detector's training: losses, gradients, optimisers, repeatability, learning, resuming."""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

from objbench.conformance.kit import Check, Wrong, collector
from objbench.conformance.models import (
    FALL,
    FIT_SCENES,
    PATIENCE,
    ModelSubject,
    differing,
    fallen,
    fields,
    look,
    only_zeros,
    some,
    source,
    stepped,
    ten,
)
from objbench.detector import Detector, trains_by_steps
from objbench.errors import Interrupted
from objbench.score.arrays import load_tensors, save_tensors
from objbench.train.loop import Watch, train

CHECKS: list[Check] = []
check = collector(CHECKS)


@check("loss", "training", "every term of the loss is a scalar and finite, and so are the gradients")
def _loss(subject: ModelSubject) -> str:
    subject.needs_steps()
    for done in subject.schedule:
        if bad := [name for name, value in done.terms.items() if not math.isfinite(value)]:
            raise Wrong(f"at step {done.step} the term '{bad[0]}' is {done.terms[bad[0]]}")
        if bad := [n for n, g in done.gradients.items() if g is not None and not g.isfinite().all()]:
            raise Wrong(f"at step {done.step} not finite: the gradients of {some(bad)}")
    return f"finite at steps {', '.join(str(done.step) for done in subject.schedule)}"


@check(
    "gradients",
    "training",
    "every parameter gets a gradient at some step of the schedule, or has requires_grad=False",
)
def _gradients(subject: ModelSubject) -> str:
    subject.needs_steps()
    names = list(subject.schedule[0].gradients)
    if without := [n for n in names if all(done.gradients[n] is None for done in subject.schedule)]:
        raise Wrong(f"none for {some(without)}")
    zeros = only_zeros(subject.schedule)  # may be correct, such as for a gate that is closed at first
    warning = f"; warning: only zeros for {some(zeros)}, see the check 'dead'" if zeros else ""
    return f"{len(names)} parameters{warning}"


@check("optimizers", "training", "every parameter that needs a gradient is in exactly one optimiser")
def _optimizers(subject: ModelSubject) -> str:
    subject.needs_steps()
    detector = subject.built()
    names = {id(p): name for name, p in detector.named_parameters() if p.requires_grad}
    held = [id(p) for o in detector.optimizers() for group in o.param_groups for p in group["params"]]
    if left := [name for key, name in names.items() if key not in held]:
        raise Wrong(f"no optimiser has {some(left)}")
    if twice := [names[key] for key in names if held.count(key) > 1]:
        raise Wrong(f"several optimisers have {some(twice)}")
    return f"{len(names)} parameters in {len(detector.optimizers())} optimisers"


@check(
    "repeatable",
    "training",
    "the same seed gives the same weights and losses, at first and after training, bit for bit",
)
def _repeatable(subject: ModelSubject) -> str:
    runs = []
    for _ in range(2):
        detector = subject.built(seed=3)
        if not trains_by_steps(subject.cls):
            subject.fit(detector)
            runs.append(([0.0], detector.state_dict()))
            continue
        optimizers = detector.optimizers()
        losses = [stepped(detector, optimizers, ten().images[:4], step) for step in range(3)]
        runs.append((losses, detector.state_dict()))
    (first, state), (second, again) = runs
    if first != second:
        step = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        raise Wrong(f"the loss of step {step} is {first[step]!r}, then {second[step]!r}")
    if other := differing(state, again):
        raise Wrong(f"different after the same training: {some(other)}")
    return "two trainings are equal" if trains_by_steps(subject.cls) else "two fits are equal"


@check(
    "learns", "training", f"it can memorise ten images: within {PATIENCE} steps the loss falls by {FALL:.0%}"
)
def _learns(subject: ModelSubject) -> str:
    subject.needs_steps()
    _, losses = subject.learned
    first, last = statistics.median(losses[:3]), statistics.median(losses[-5:])
    course = f"from {first:.4g} to {last:.4g} in {len(losses)} steps, by {fallen(losses):.0%}"
    if not fallen(losses) >= FALL:
        raise Wrong(course)
    return course


@check(
    "dead",
    "training",
    "a parameter whose gradients were all zero at first gets other gradients after ten images are learnt, or "
    "has requires_grad=False",
)
def _dead(subject: ModelSubject) -> str:
    subject.needs_steps()
    zeros = only_zeros(subject.schedule)
    if not zeros:
        return "no parameter had only zeros"
    again = subject.built()
    again.load_state_dict(subject.learned[0].state_dict())
    still = only_zeros(subject.passes(again))
    if dead := [name for name in zeros if name in still]:
        raise Wrong(f"still only zeros after {len(subject.learned[1])} steps of learning: {some(dead)}")
    return f"{some(zeros)}: other gradients after {len(subject.learned[1])} steps of learning"


@check(
    "state",
    "state",
    "the state_dict contains all that detection needs: after saving and loading, the detections are the same",
)
def _state(subject: ModelSubject) -> str:
    detector = subject.finding
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(Path(folder, "weights.safetensors"), detector.state_dict())
        again = subject.built(seed=1)
        again.load_state_dict(load_tensors(Path(folder, "weights.safetensors")))
    if other := differing(fields(look(detector, ten())), fields(look(again, ten()))):
        raise Wrong(f"different when loaded into a new detector: {some(other)} of its detections")
    return f"{sum(v.numel() for v in detector.state_dict().values()):,} values"


@check("resume", "state", "a training that is stopped and resumed ends with the same weights, bit for bit")
def _resume(subject: ModelSubject) -> str:
    subject.needs_steps()
    ends = []
    for stop_at in (None, 2):
        with tempfile.TemporaryDirectory() as folder:
            try:
                detector = _trained_to_end(subject, Path(folder), stop_at)
            except Interrupted:
                detector = _trained_to_end(subject, Path(folder), None)
            ends.append(detector.state_dict())
    if other := differing(*ends):
        raise Wrong(f"different in the end: {some(other)}")
    return "4 steps in one run, and 2 + 2 steps"


def _trained_to_end(subject: ModelSubject, folder: Path, stop_at: int | None) -> Detector:
    """Trains four steps with the harness's loop on small batches; raises Interrupted after `stop_at` steps."""
    detector = subject.built(steps=4, batch_size=2)
    train(detector, source(), 0, folder, StopAt(stop_at), FIT_SCENES)
    return detector


class StopAt(Watch):
    """Stops a training after its first `steps` steps; never if None."""

    def __init__(self, steps: int | None) -> None:
        self.left = steps

    def stopping(self) -> bool:
        """Counts the steps."""
        self.left = None if self.left is None else self.left - 1
        return self.left == 0
