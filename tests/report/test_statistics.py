"""Intervals and comparisons on simulated tables whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objbench.detector import Detections
from objbench.plugins import load_plugins, load_target
from objbench.report.statistics import (
    Run,
    best_and_tied,
    compare,
    difference,
    interval,
)
from objbench.scenes import GroundTruth
from objbench.score.arrays import select_scenes
from objbench.score.draws import resample, resample_weighted, scenes_digest


def scenes(seed: int, images: int = 40, most: int = 4, truth_seed: int = 0) -> tuple[Detections, GroundTruth]:
    """Detections in no order of images, every row distinct."""
    random, true = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(truth_seed)
    counts = torch.randint(0, most, (images,), generator=true)
    image = torch.repeat_interleave(torch.arange(images), counts)
    truth = GroundTruth(
        images,
        image,
        torch.rand(len(image), 4, generator=true),
        torch.randint(0, 3, image.shape, generator=true),
    )
    found = torch.randint(0, images, (images * 2,), generator=random)
    m = len(found)
    detections = Detections(
        images,
        found,
        torch.rand(m, 4, generator=random),
        torch.rand(m, generator=random),
        torch.randint(0, 9, (m,), generator=random),
        torch.rand(m, 2, generator=random),
    )
    return detections, truth


def objects_a_scene(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    return {"objects": len(truth.image) / truth.images, "found": len(detections.image) / detections.images}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 60), most=st.integers(1, 5))
def test_selected_scenes_hold_what_the_scenes_they_are_taken_from_hold(seed: int, n: int, most: int) -> None:
    detections, truth = scenes(seed, 12, most, seed)
    indices = torch.randint(0, 12, (n,), generator=torch.Generator().manual_seed(seed))
    found, there = select_scenes(detections, truth, indices)
    assert found.images == there.images == n
    for new, old in enumerate(indices.tolist()):
        for name in ("boxes", "scores", "clusters", "what"):
            assert torch.equal(
                getattr(found, name)[found.image == new], getattr(detections, name)[detections.image == old]
            )
        for name in ("boxes", "labels"):
            assert torch.equal(
                getattr(there, name)[there.image == new], getattr(truth, name)[truth.image == old]
            )
    assert len(found.image) == sum(int((detections.image == i).sum()) for i in indices)


def test_parts_that_a_detector_does_not_give_stay_absent() -> None:
    detections, truth = scenes(0)
    bare = Detections(detections.images, detections.image, detections.boxes, detections.scores)
    found, _ = select_scenes(bare, truth, torch.tensor([1, 1]))
    assert found.clusters is None
    assert found.what is None


def test_resampled_means_spread_as_theory_says() -> None:
    detections, truth = scenes(3, images=200)
    run = Run(*resample(detections, truth, objects_a_scene, 400)["objects"])
    counts = torch.bincount(truth.image, minlength=200).double()
    assert len(run.replicates) == 400
    assert run.point == counts.mean()
    low, high = interval([run])
    assert high - low == pytest.approx(2 * 1.96 * counts.std().item() / math.sqrt(200), rel=0.15)
    assert low < run.point < high


def test_draws_depend_on_the_truth_alone() -> None:
    (one, truth), (other, same), (_, different) = scenes(1), scenes(2), scenes(1, truth_seed=5)
    _, a = resample(one, truth, objects_a_scene, 20)["objects"]
    _, b = resample(other, same, objects_a_scene, 20)["objects"]
    assert np.array_equal(a, b)
    parts = [
        resample(one, truth, objects_a_scene, end, first)["objects"][1] for first, end in ((0, 7), (7, 20))
    ]
    assert np.array_equal(np.concatenate(parts), a), (
        "a draw has its number, however many are asked for at once"
    )
    assert scenes_digest(truth) == scenes_digest(same) != scenes_digest(different)


SCENES, DRAWS, TRIALS = 200, 300, 3000


def shares(random: np.random.Generator) -> list[np.ndarray]:
    """[draws, scenes]: how often draws contain each scene, as shares; a few of them, to be used in turn."""
    return [random.multinomial(SCENES, np.full(SCENES, 1 / SCENES), DRAWS) / SCENES for _ in range(30)]


def simulate(
    random: np.random.Generator,
    weights: list[np.ndarray],
    n: int,
    seed_std: float,
    scene_std: float,
    both_std: float,
    shared: bool,
) -> list[Run]:
    """Runs of true mean 0.5: values differ between training runs, between scenes (of one test set or of n), and between
    scenes of each run."""
    sets = 1 if shared else n
    scene = np.repeat(random.normal(0, scene_std, (sets, SCENES)), n // sets, axis=0)
    values = 0.5 + random.normal(0, seed_std, (n, 1)) + scene + random.normal(0, both_std, (n, SCENES))
    drawn = random.choice(len(weights), sets, replace=False).repeat(n // sets)
    return [Run(float(v.mean()), weights[i] @ v) for v, i in zip(values, drawn, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "shared"), [(1, True), (3, True), (3, False), (8, True)])
@pytest.mark.parametrize(
    ("seed_std", "scene_std", "both_std"),
    [(0.05, 0.01, 0.003), (0.0, 0.3, 0.1), (0.03, 0.2, 0.07)],
)
def test_the_interval_of_a_row_holds_the_true_figure_93_to_97_times_of_100(
    n: int, seed_std: float, scene_std: float, both_std: float, shared: bool
) -> None:
    """For one run the claim is about this training, so seeds do not vary."""
    random = np.random.default_rng(n)
    weights = shares(random)
    spread = (0.0 if n == 1 else seed_std, scene_std, both_std)
    intervals = [interval(simulate(random, weights, n, *spread, shared)) for _ in range(TRIALS)]
    held = np.mean([low <= 0.5 <= high for low, high in intervals])
    assert 0.93 <= held <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "between_seeds", "of_scenes", "of_both"),
    [
        (1, 0.0, 0.3, 0.1),
        (1, 0.0, 0.0, 0.3),
        (3, 0.0, 0.3, 0.1),
        (3, 0.05, 0.3, 0.1),
        (3, 0.1, 0.3, 0.1),
        (3, 0.02, 0.05, 0.3),
        (5, 0.1, 0.3, 0.1),
        (5, 0.0, 0.0, 0.3),
    ],
)
def test_the_interval_of_a_difference_holds_the_true_one_93_to_97_times_of_100(
    runs: int, between_seeds: float, of_scenes: float, of_both: float
) -> None:
    """Pairs of runs on the same scenes, whose difficulty cancels; differences vary between seeds, between scenes (for
    all seeds alike), and between both. The true difference is 0.1. For one pair the claim is about these two trainings,
    so seeds do not vary."""
    random = np.random.default_rng(1)
    weights, held = shares(random), 0
    for trial in range(TRIALS):
        second = random.normal(0.5, 0.3, SCENES) + random.normal(0, of_both, (runs, SCENES))
        first = second + 0.1 + random.normal(0, of_both, (runs, SCENES)) + random.normal(0, of_scenes, SCENES)
        first += random.normal(0, between_seeds, (runs, 1))
        drawn = weights[trial % len(weights)]
        sides = [{i: Run(float(v.mean()), drawn @ v) for i, v in enumerate(side)} for side in (first, second)]
        _, low, high = difference(*sides)
        held += low <= 0.1 <= high
    assert 0.93 <= held / TRIALS <= 0.97


def test_the_interval_of_one_seed_knows_nothing_of_other_seeds() -> None:
    random = np.random.default_rng(0)
    weights = shares(random)
    held = np.mean(
        [
            low <= 0.5 <= high
            for low, high in (
                interval(simulate(random, weights, 1, 0.1, 0.1, 0.03, False)) for _ in range(200)
            )
        ]
    )
    assert held < 0.4


def test_what_the_draw_of_scenes_does_to_all_runs_is_added_to_the_spread_between_them() -> None:
    points, hard = [0.5, 0.6, 0.7], np.random.default_rng(0).normal(0, 0.1, 2000)
    low, high = interval([Run(p, p + hard) for p in points])
    seeds, scenes = 4.30 * 0.1 / math.sqrt(3), 1.96 * 0.1  # Student's t with 2 degrees of freedom
    assert high - low > 1.1 * 2 * max(0.1 / math.sqrt(3) * 1.96, scenes)
    own = [Run(p, p + np.random.default_rng(i).normal(0, 0.1, 2000)) for i, p in enumerate(points)]
    low, high = interval(own)  # of scenes of its own each: the spread between runs contains their draw
    assert high - low == pytest.approx(2 * seeds, rel=0.15)


def test_an_interval_reaches_to_the_side_to_which_resampled_figures_do() -> None:
    replicates = 0.5 + np.random.default_rng(0).exponential(0.1, 2000)
    low, high = interval([Run(0.5, replicates)])
    assert high - 0.5 > 1.5 * (0.5 - low)


def test_a_figure_that_is_not_defined_has_no_interval() -> None:
    assert all(math.isnan(v) for v in interval([]))
    assert all(math.isnan(v) for v in interval([Run(math.nan, np.zeros(5)), Run(1.0, np.ones(5))]))
    assert interval([Run(0.5, np.full(10, 0.5))] * 2) == (0.5, 0.5)


def row(values: list[float], noise: np.ndarray) -> dict[int, Run]:
    """A run for each seed, all with the same noise of the test scenes."""
    return {seed: Run(v, v + noise) for seed, v in enumerate(values)}


NOISE = np.random.default_rng(0).normal(0, 0.05, 500)
OTHER_NOISE = np.random.default_rng(1).normal(0, 0.05, 500)


def test_identical_rows_tie_and_a_clearly_better_one_does_not() -> None:
    a, same, worse = (
        row([0.9, 0.91, 0.92], NOISE),
        row([0.9, 0.91, 0.92], NOISE),
        row([0.5, 0.52, 0.51], NOISE),
    )
    assert difference(a, same) == (0, 0, 0)
    assert best_and_tied([a, same, worse]) == [True, True, False]
    assert best_and_tied([worse, a]) == [False, True]


def test_pairing_tells_apart_what_separate_intervals_do_not() -> None:
    better, worse = row([0.90, 0.91, 0.92], NOISE), row([0.88, 0.89, 0.90], NOISE)
    assert interval([*better.values()])[0] < interval([*worse.values()])[1]
    assert difference(better, worse)[1:] == pytest.approx((0.02, 0.02))
    assert best_and_tied([better, worse]) == [True, False]
    unpaired = row([0.88, 0.89, 0.90], OTHER_NOISE)
    assert best_and_tied([better, unpaired]) == [True, True]


@pytest.mark.parametrize("truly", [0.0, 0.15])
def test_rows_that_are_alike_tie_and_rows_apart_do_not(truly: float) -> None:
    """Scenes are much harder or easier than one another, for both rows alike; 3 seeds each."""
    random, ties = np.random.default_rng(4), []
    for _ in range(300):
        scene = random.normal(0, 0.4, 60)
        weights = random.multinomial(60, [1 / 60] * 60, 150) / 60
        rows = []
        for mean in (0.5 + truly, 0.5):
            values = mean + random.normal(0, 0.02, (3, 1)) + scene + random.normal(0, 0.1, (3, 60))
            rows.append({seed: Run(v.mean(), weights @ v) for seed, v in enumerate(values)})
        ties.append(best_and_tied(rows)[1])
    # Alike, the second is the best itself half of the time, else tied with it; 0.15 apart it is neither.
    assert np.mean(ties) > 0.93 if truly == 0 else np.mean(ties) < 0.1


def test_rows_that_differ_only_by_their_seeds_tie() -> None:
    a, b = row([0.90, 0.80, 0.95], NOISE), row([0.85, 0.91, 0.84], NOISE)
    assert best_and_tied([a, b]) == [True, True]


def test_only_shared_scenes_are_compared() -> None:
    a, b = row([0.9, 0.5], NOISE), {0: Run(0.8, 0.8 + NOISE), 7: Run(0.1, 0.1 + NOISE)}
    assert difference(a, b)[0] == pytest.approx(0.1)
    undefined = difference(a, {9: Run(0.1, NOISE)})
    assert len(undefined) == 3
    assert all(math.isnan(v) for v in undefined)


def test_rows_are_compared_within_their_block_and_by_those_who_may_win() -> None:
    def of(values: list[float]) -> dict[int, dict[str, Run]]:
        return {seed: {"ap": run} for seed, run in row(values, NOISE).items()}

    rows = [of([0.9, 0.9]), of([0.7, 0.7]), of([0.99, 0.99]), of([0.2, 0.2]), {}]
    found = compare(rows, ["x", "x", "x", "y", "x"], [True, True, False, True, True], 500)
    assert found.best == [{"ap"}, set(), set(), set(), set()]  # neither the oracle, nor who is alone
    assert [(a, b) for a, b, _ in found.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert found.pairs[0][2]["ap"] == pytest.approx((0.2, 0.2, 0.2))
    low, high = found.intervals[1]["ap"]
    assert 0.58 < low < 0.62
    assert 0.78 < high < 0.82
    assert all(math.isnan(v) for v in found.intervals[4]["ap"])


def test_each_block_has_a_best_row_and_pairs_of_its_own() -> None:
    rows = [{0: {"ap": Run(v, v + NOISE)}} for v in (0.5, 0.4, 0.9, 0.8, 0.2, 0.3)]
    found = compare(rows, ["y", "y", "x", "x", "z", "z"], [True] * 6, 500)
    assert found.best == [{"ap"}, set(), {"ap"}, set(), set(), {"ap"}]
    assert [(a, b) for a, b, _ in found.pairs] == [(0, 1), (2, 3), (4, 5)]


def test_a_row_without_a_figure_is_never_best() -> None:
    undefined = row([math.nan], NOISE)
    assert best_and_tied([undefined, row([0.1], NOISE)]) == [False, True]
    assert best_and_tied([undefined, {}]) == [False, False]


@pytest.mark.filterwarnings("error")
def test_an_infinite_figure_has_no_interval_as_one_that_is_not_defined() -> None:
    truth = GroundTruth(
        4, torch.arange(4), torch.tensor([[0.0, 0, 4, 4]]).repeat(4, 1), torch.zeros(4).long()
    )
    found = Detections(4, truth.image, truth.boxes, torch.ones(4), truth.labels)
    run = Run(*resample(found, truth, lambda *_: {"nats": math.inf}, 100)["nats"])
    low, high = interval([run, run])
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 30), levels=st.sampled_from([2, 10, 1000]))
def test_weighing_the_scenes_gives_what_scoring_each_draw_gives(seed: int, images: int, levels: int) -> None:
    """To 1e-12, on few images and many ties too; every metric of ours that is a column weighs."""
    registry = load_plugins()
    random = torch.Generator().manual_seed(seed)
    found, truth = scenes(seed, images, truth_seed=seed)
    found = replace(
        found,
        boxes=torch.cat([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], 1),
        scores=(found.scores * levels).round() / levels,
        clusters=torch.randint(-1, 4, found.image.shape, generator=random),
    )
    truth = replace(truth, boxes=torch.cat([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], 1))
    specs = [spec for spec in registry.metrics.values() if spec.columns]
    assert all(spec.weighted for spec in specs)
    for spec in specs:
        metric, weighted = load_target(spec.target), load_target(spec.weighted)
        plain = resample(found, truth, metric, 20)
        fast = resample_weighted(found, truth, metric, weighted, 20)
        assert fast.keys() == plain.keys()
        for name, (point, replicates) in plain.items():
            np.testing.assert_allclose(fast[name][1], replicates, rtol=0, atol=1e-12, err_msg=name)
            assert fast[name][0] == point or np.isnan(point)


def test_a_detector_without_clusters_is_weighed_too() -> None:
    found, truth = scenes(1)
    spec = load_plugins().metric("clustering")
    runs = resample_weighted(
        replace(found, clusters=None), truth, load_target(spec.target), load_target(spec.weighted), 5
    )
    assert all(np.isnan(replicates).all() and len(replicates) == 5 for _, replicates in runs.values())
