"""The conformance kit: sound plugins pass, and for each check there is a plugin that fails it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from objbench.conformance import registration
from objbench.conformance.detections import disagreement
from objbench.conformance.kit import Subject, run_check
from objbench.conformance.models import STANDS_OUT, ModelSubject, fallen
from objbench.conformance.subjects import find_subjects
from objbench.detector import Detections
from objbench.errors import UsageError
from objbench.plugins import Registry, load_plugins
from running import objbench

pytest_plugins = ["pytester"]

BROKEN = Path(__file__).parents[1] / "broken_plugins"
FILES = {name: str(BROKEN / f"{name}.py") for name in ("detectors", "sources", "measures", "groupers")}
GUIDE = Path(__file__).parents[2] / "docs" / "plugins.md"


def load(kind: str) -> Registry:
    """What is installed, and the sound and broken plugins of one kind."""
    return load_plugins((FILES[kind],))


def broken_by(kind: str) -> dict[str, object]:
    """The check that each broken plugin of a kind breaks."""
    spec = importlib.util.spec_from_file_location(f"reading_{kind}", FILES[kind])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.BROKEN)


PAIRS = [(kind, name) for kind in FILES for name in broken_by(kind)]
NOTHING_TO_BREAK = {"registration", "code", "gpu", "cost"}
"""Checks without a broken plugin here: registration has a test of its own, gpu needs one, cost passes all."""


def subject_of(kind: str, name: str) -> Subject:
    (subject,) = find_subjects(load(kind), name)
    return subject


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_each_check_fails_a_plugin_that_is_broken_so(kind: str, name: str) -> None:
    subject = subject_of(kind, f"bad-{name}")
    (check,) = [check for check in subject.checks if check.name == name]
    finding = run_check(subject, check)
    assert finding.outcome == "failed", finding
    assert finding.expected
    assert finding.came
    assert finding.read == f"docs/plugins.md#{check.section}"


@pytest.mark.parametrize(("name", "outcome", "says"), [
    ("bad-dead", "failed", "still only zeros after"),
    ("late", "passed", "gain: other gradients after"),
    ("sound", "passed", "no parameter had only zeros"),
])  # fmt: skip
def test_a_parameter_with_zero_gradients_is_warned_of_and_looked_at_again(
    name: str, outcome: str, says: str
) -> None:
    subject = subject_of("detectors", name)
    checks = {check.name: check for check in subject.checks}
    assert list(checks).index("dead") > list(checks).index("learns")
    first = run_check(subject, checks["gradients"])
    assert first.outcome == "passed"
    assert ("warning: only zeros for gain" in first.came) == (name != "sound")
    again = run_check(subject, checks["dead"])
    assert (again.outcome, says in again.came) == (outcome, True), again


def test_a_metric_that_depends_on_the_order_of_ties_fails() -> None:
    subject = subject_of("measures", "ties")
    (check,) = [check for check in subject.checks if check.name == "order"]
    finding = run_check(subject, check)
    assert finding.outcome == "failed"
    assert finding.came.startswith("detections in another order: boxes is")


@pytest.mark.parametrize("kind", FILES)
def test_a_sound_plugin_passes_all_and_no_check_is_without_a_broken_one(kind: str) -> None:
    subject = subject_of(kind, "sound")
    found = [run_check(subject, check) for check in subject.checks]
    assert not [str(finding) for finding in found if finding.outcome == "failed"]
    assert {finding.check for finding in found} - NOTHING_TO_BREAK == set(broken_by(kind))


@pytest.mark.parametrize("kind", FILES)
def test_what_a_failure_says_to_read_is_a_heading_of_the_guide(kind: str) -> None:
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.strip("# \n").lower()).replace(" ", "-")
               for line in GUIDE.read_text().splitlines() if line.startswith("#")}  # fmt: skip
    for check in subject_of(kind, "sound").checks:
        assert check.section in anchors


NEED_FILES = ("fruit2d", "folder", "objects")
"""Data sets that are made of the user's files."""
SHORT = {
    "aae": {"steps": "5", "width": "50"},
    "iic": {"steps": "20"},
    "gmvae": {"steps": "20"},
    "contrastive": {"epochs": "3", "round_epochs": "2", "rounds": "1"},
    "ceiling": {"epochs": "3"},
}
"""What the checks hold does not depend on how long a clusterer is fitted, and they fit it a dozen times."""


def first_party() -> list[object]:
    registry, cases = load_plugins(), []
    for (_, name), owners in registry.owners.items():
        if not owners[0].startswith("objbench ") or name in NEED_FILES:
            continue
        for subject in find_subjects(registry, name, SHORT):
            cases += [pytest.param(subject, check, id=f"{name}-{check.name}") for check in subject.checks]
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "check"), first_party())
def test_first_party_plugins_pass_the_kit(subject, check) -> None:
    finding = run_check(subject, check)
    assert finding.outcome != "failed", str(finding)


@pytest.mark.slow
def test_a_package_that_imports_torch_to_register_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BROKEN))
    registry = load_plugins()
    plugin = dataclasses.replace(registry.plugins[0], source="heavy 1.0", module="heavy")
    registry = dataclasses.replace(registry, plugins=[plugin], owners={("model", "heavy"): ["heavy 1.0"]})
    with pytest.raises(Exception, match="importing heavy imports torch, numpy"):
        registration.light(registry, "model", "heavy")


def test_check_prints_what_was_expected_what_came_and_where_to_read(tmp_path: Path) -> None:
    file = tmp_path / "one_bad_metric.py"
    file.write_text(
        "from objbench import MetricSpec, hookimpl\n"
        "def metric(detections, truth):\n    return {'x': float(len(detections.boxes)) and 1 / 0}\n"
        "objbench_metrics = hookimpl(lambda: [MetricSpec('bad', 'bad', 'one_bad_metric:metric')])\n"
    )
    ran = objbench("check", str(file))
    assert ran.code == 1
    assert "metric bad" in ran.out
    assert "FAILED  values\n      expected: a dict of named floats" in ran.out
    assert "got:      ZeroDivisionError: division by zero (one_bad_metric.py, line 3)" in ran.out
    assert "see:      docs/plugins.md#metrics" in ran.out
    rows = json.loads(objbench("check", str(file), "--json").out)
    assert {"values", "pure"} <= {row["check"] for row in rows if row["outcome"] == "failed"}
    assert set(rows[0]) == {"kind", "plugin", "check", "outcome", "expected", "came", "read"}


def test_check_takes_a_name_and_says_when_there_is_none() -> None:
    ran = objbench("check", "count_error")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "9 passed, 0 failed, 1 skipped")
    unknown = objbench("check", "count_eror")
    assert unknown.code == 2
    assert "did you mean 'count_error'?" in unknown.err
    wrong = objbench("check", "count_error", "-o", "gmair.lr=1")
    assert wrong.code == 2
    assert "only options of count_error" in wrong.err


def test_a_package_means_all_that_it_registers() -> None:
    registry = load_plugins()
    names = {subject.name for subject in find_subjects(registry, "objbench")}
    assert names == {*registry.models, *registry.data, *registry.metrics, *registry.clusterers}


def test_a_plugin_that_did_not_load_is_reported_with_its_error() -> None:
    registry = load_plugins()
    broken = dataclasses.replace(registry.plugins[0], name="mine", source="mine 1.0", error="ValueError: no")
    registry.plugins.append(broken)
    with pytest.raises(UsageError, match=r"plugin 'mine' of mine 1\.0 did not load: ValueError: no"):
        find_subjects(registry, "mine")


def test_the_order_of_detections_sets_nothing_apart_but_a_pixel_does() -> None:
    boxes = torch.rand(30, 4) * 50
    found = Detections(1, torch.zeros(30).long(), boxes, torch.rand(30) + STANDS_OUT, torch.arange(30))
    order = torch.randperm(30)
    shuffled = Detections(1, found.image, boxes[order], found.scores[order], order)
    assert disagreement(found, shuffled) == ""
    assert "box and percent" in disagreement(found, dataclasses.replace(shuffled, boxes=boxes[order] + 0.1))
    assert disagreement(found, dataclasses.replace(shuffled, clusters=order + 1)) == "other clusters"


def test_how_far_a_loss_has_fallen_also_below_zero() -> None:
    assert fallen([10.0] * 9) == 0
    assert fallen([10.0] * 5 + [5.0] * 5) == pytest.approx(0.5)
    assert fallen([-10.0] * 5 + [-20.0] * 5) == pytest.approx(1)
    assert fallen([10.0] * 5 + [20.0] * 5) == pytest.approx(-1)


@pytest.mark.parametrize(("kind", "says"), [("bad-loss", "1 failed, 1 passed"), ("sound", "2 passed")])
def test_the_kit_is_a_pytest_plugin(pytester: pytest.Pytester, kind: str, says: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.objbench({FILES["detectors"]!r})
        def test_contract(objbench_check):
            objbench_check()
        """
    )
    ran = pytester.runpytest("-k", f"{kind}-settings or {kind}-loss", "-p", "no:cacheprovider")
    ran.stdout.fnmatch_lines([f"*{says}*"])
    if kind == "bad-loss":
        ran.stdout.fnmatch_lines(
            ["*expected: every term of the loss is a scalar and finite*", "*the term 'log' is nan*"]
        )


def test_the_marks_options_reach_what_a_file_registers(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.objbench({FILES["detectors"]!r}, options={{"steps": "80"}})
        def test_contract(objbench_check):
            objbench_check()
        """
    )
    ran = pytester.runpytest("-k", "test_contract[sound-loss]", "-rA", "-p", "no:cacheprovider")
    ran.assert_outcomes(passed=1)
    subject = find_subjects(load("detectors"), "sound", {"sound": {"steps": "80"}})[0]
    (loss,) = [check for check in subject.checks if check.name == "loss"]
    assert run_check(subject, loss).came == "finite at steps 0, 19, 39, 59, 79"


def test_a_file_that_registers_nothing_is_reported(tmp_path: Path) -> None:
    (tmp_path / "only_a_class.py").write_text("class Detector: pass\n")
    ran = objbench("check", str(tmp_path / "only_a_class.py"))
    assert ran.code == 2
    assert (
        "registers no model, data set, metric or clusterer; its hooks do that, see docs/plugins.md" in ran.err
    )


def test_an_error_is_reported_with_the_plugins_own_line(tmp_path: Path) -> None:
    """Not with torch's, in which it came up, nor with the harness's, which looked."""
    file = tmp_path / "mismatched.py"
    file.write_text(
        "import torch\n"
        "from objbench import ModelSpec, hookimpl\n"
        "from objbench.detector import Detections, Detector\n"
        "class Model(Detector):\n"
        "    def __init__(self, config, shape):\n"
        "        super().__init__(config, shape)\n"
        "        self.layer = torch.nn.Linear(5, 3)\n"
        "    def training_step(self, images, step): return self.layer(images).sum()\n"
        "    def detect(self, images):\n"
        "        return Detections(1, torch.zeros(1).long(), torch.zeros(1, 3), torch.zeros(1))\n"
        "objbench_models = hookimpl(lambda: [ModelSpec('mismatched', '', 'mismatched:Model')])\n"
    )
    ran = objbench("check", str(file))
    assert "shapes cannot be multiplied (640x64 and 5x3) (mismatched.py, line 8)" in ran.out
    (subject,) = find_subjects(load_plugins((str(file),)), "mismatched")
    (check,) = [check for check in subject.checks if check.name == "empty"]
    assert run_check(subject, check).came.endswith("(mismatched.py, line 8)")


def test_models_are_built_on_scenes_they_have_never_heard_of() -> None:
    subject = subject_of("detectors", "sound")
    assert isinstance(subject, ModelSubject)
    assert subject.config.steps == 40
    assert len(subject.learned[1]) >= 10
