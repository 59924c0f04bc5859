"""A NaN anywhere in a detector ends its training with the step and the term, not with an error of some function."""

import math
import re

import pytest
import torch

from capturing import SMALL, Case, some, steps_of
from objbench.latents import binary_cross_entropy
from objbench.train.steps import Diverged


def test_binary_cross_entropy_is_torchs_with_its_gradient():
    """To the last bit, whatever the layout in memory, so that figures do not depend on how NaN is treated."""
    gen = torch.Generator().manual_seed(0)
    layouts = (torch.rand(4, 3, 8, 8, generator=gen), torch.rand(4, 8, 3, 8, generator=gen).transpose(1, 2))
    for raw in layouts:  # the second is as the renderers leave it
        target = torch.rand(4, 3, 8, 8, generator=gen)
        raw[0, :, :2] = torch.tensor([0.0, 1.0])[:, None]
        ours, theirs = (raw.clone().requires_grad_() for _ in range(2))
        assert ours.stride() == raw.stride()
        found = binary_cross_entropy(ours, target)
        expected = torch.nn.functional.binary_cross_entropy(theirs, target, reduction="none")
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()
        found.sum().backward()
        expected.sum().backward()
        assert torch.equal(ours.grad, theirs.grad)


def test_binary_cross_entropy_is_nan_where_the_mean_is():
    mean = torch.tensor([0.3, math.nan, 1.0])
    found = binary_cross_entropy(mean, torch.tensor([0.0, 1.0, 1.0]))
    assert found.isnan().tolist() == [False, True, False]


def of_modules(case: Case) -> list[str]:
    """The top-level modules and parameters of a detector that are trained."""
    names = [name for name, p in case.detector().named_parameters() if p.requires_grad]
    return sorted({name.split(".")[0] for name in names})


@pytest.mark.parametrize("case", some(SMALL))
@pytest.mark.parametrize("captured", [False, True])
def test_a_nan_in_any_part_ends_with_step_and_term(case: Case, captured: bool) -> None:
    for part in of_modules(case):
        detector = case.detector()
        step = detector.config.steps - 1  # every part is used by then
        take = steps_of(detector)
        for name, parameter in detector.named_parameters():
            if name.split(".")[0] == part:
                parameter.data.fill_(math.nan)
        if captured:
            values = detector.schedule(step)
            detector.held = {name: torch.tensor(value).double() for name, value in values.items()}
        with pytest.raises(Diverged) as caught:
            take(case.images(step), step)
        said = rf"the loss became nan at step {step}: its term '\w+'"
        assert re.fullmatch(said, str(caught.value)), f"{part}: {caught.value}"
