"""COCO files in and out, `objbench score`, and the running of metrics that misbehave."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from objbench import scoring
from objbench.coco import read_detections, read_truth, write_detections, write_truth
from objbench.commands.score import score
from objbench.detector import Detections
from objbench.errors import UsageError
from objbench.hookspecs import MetricSpec
from objbench.plugins import Registry, load_plugins
from objbench.scenes import GroundTruth

TRUTH: dict[str, Any] = {
    "images": [{"id": 40}, {"id": 7}],
    "categories": [{"id": 9, "name": "b"}, {"id": 3, "name": "a"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 40, "category_id": 9, "bbox": [10.5, 0, 2.5, 8], "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 9, "bbox": [20, 20, 5, 5]},
    ],
}
FOUND: list[dict[str, Any]] = [
    {"image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.9},
    {"image_id": 7, "category_id": 0, "bbox": [20, 20, 5, 5], "score": 0.25},
    {"image_id": 40, "category_id": 0, "bbox": [10.5, 0, 2.5, 8], "score": 1},
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A sound truth and sound detections."""
    truth, detections = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(TRUTH))
    detections.write_text(json.dumps(FOUND))
    return truth, detections


def run(truth: Path, detections: Path, *more: str) -> Result:
    return CliRunner().invoke(score, ["--truth", str(truth), "--detections", str(detections), *more])


# Files


def test_reads_truth_by_the_ids_of_the_file(files: tuple[Path, Path]) -> None:
    """Images in the file's order, labels by ascending category id, objects by image."""
    read = read_truth(files[0])
    assert read.image_ids == [40, 7]
    assert read.truth.images == 2
    assert read.truth.image.tolist() == [0, 1, 1]
    assert read.truth.labels.tolist() == [1, 0, 1]
    assert read.truth.boxes.tolist() == [[10.5, 0, 13, 8], [1, 2, 4, 6], [20, 20, 25, 25]]


def test_reads_detections(files: tuple[Path, Path]) -> None:
    found = read_detections(files[1], [40, 7])
    assert found.images == 2
    assert found.image.tolist() == [1, 1, 0]
    assert found.boxes.tolist() == [[1, 2, 4, 6], [20, 20, 25, 25], [10.5, 0, 13, 8]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.25, 1])
    assert found.clusters is not None
    assert found.clusters.tolist() == [4, 0, 0]
    assert [t.dtype for t in (found.image, found.boxes, found.scores, found.clusters)] == [
        torch.int64,
        torch.float64,
        torch.float64,
        torch.int64,
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, seed: int, clusters: bool) -> None:
    """What is written is read as the same tensors, to the last bit."""
    draw = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("coco")
    images, objects, boxes = int(draw.integers(1, 5)), int(draw.integers(1, 9)), int(draw.integers(1, 30))

    def some(count: int) -> torch.Tensor:
        corner = draw.normal(20, 40, (count, 2))
        return torch.tensor(np.concatenate([corner, corner + draw.uniform(0.01, 90, (count, 2))], 1)).float()

    image = torch.tensor(np.sort(draw.integers(0, images, objects)))
    truth = GroundTruth(images, image, some(objects), torch.tensor(draw.integers(0, 3, objects)))
    found = Detections(
        images,
        torch.tensor(draw.integers(0, images, boxes)),
        some(boxes),
        torch.tensor(draw.random(boxes)).float(),
        torch.tensor(draw.integers(0, 99, boxes)) if clusters else None,
    )
    names = [f"{i}.png" for i in range(images)]
    write_truth(folder / "truth.json", truth, [(128, 96)] * images, names, ["x", "y", "z"])
    write_detections(folder / "found.json", found)
    assert {p.name for p in folder.iterdir()} == {"truth.json", "found.json"}

    there = read_truth(folder / "truth.json")
    again = read_detections(folder / "found.json", there.image_ids)
    for before, after in ((truth, there.truth), (found, again)):
        for name, value in vars(before).items():
            same = torch.equal(value, getattr(after, name)) if isinstance(value, torch.Tensor) else None
            assert same or value == getattr(after, name), name


def test_written_truth_is_what_pycocotools_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    truth = GroundTruth.of(
        [torch.tensor([[1.0, 2, 4, 6]]), torch.zeros(0, 4)], [torch.tensor([1]), torch.zeros(0)]
    )
    write_truth(tmp_path / "t.json", truth, [(64, 32), (64, 32)], ["a.png", "b.png"], ["zero", "one"])
    write_detections(
        tmp_path / "d.json", Detections(2, truth.image, truth.boxes, torch.ones(1), truth.labels)
    )
    coco = COCO(str(tmp_path / "t.json"))
    assert coco.loadImgs([2]) == [{"id": 2, "width": 64, "height": 32, "file_name": "b.png"}]
    (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert annotation["bbox"] == [1, 2, 3, 4]
    assert annotation["area"] == 12
    assert coco.loadCats([annotation["category_id"]])[0]["name"] == "one"
    assert len(coco.loadRes(str(tmp_path / "d.json")).anns) == 1


def test_crowds_are_left_out(tmp_path: Path, files: tuple[Path, Path]) -> None:
    crowd = TRUTH | {"annotations": [TRUTH["annotations"][0], TRUTH["annotations"][1] | {"iscrowd": 1}]}
    files[0].write_text(json.dumps(crowd))
    read = read_truth(files[0])
    assert read.crowds == 1
    assert read.truth.boxes.tolist() == [[1, 2, 4, 6]]
    assert "1 crowd annotations are left out" in run(*files).stderr


LOGITS = st.floats(-1e6, 1e6) | st.sampled_from([-3.0, 0.0, 0.5, 2.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(LOGITS, min_size=1, max_size=30), LOGITS)
def test_present_keeps_order_and_equality(
    tmp_path_factory: pytest.TempPathFactory, raw: list[float], present: float
) -> None:
    path = tmp_path_factory.mktemp("scores") / "found.json"
    path.write_text(json.dumps([FOUND[0] | {"score": s} for s in raw]))
    scores = read_detections(path, [7], present).scores.tolist()
    assert all(0 <= s <= 1 for s in scores)
    assert [s >= 0.5 for s in scores] == [r >= present for r in raw]
    for (a, b), (x, y) in zip(pairwise(raw), pairwise(scores), strict=True):
        assert (a < b, a == b) == (x < y, x == y)


def test_nothing_unreadable_is_written(tmp_path: Path) -> None:
    place, box = torch.zeros(1).long(), torch.tensor([[0.0, 0, 4, 4]])
    for boxes, value in ((box * 0, 0.5), (box, math.nan), (box * math.inf, 0.5), (-box, 0.5)):
        with pytest.raises(ValueError, match="1 detections have a box of no size"):
            write_detections(
                tmp_path / "found.json", Detections(1, place, boxes, torch.tensor([value]), place)
            )
    with pytest.raises(UsageError, match=r"cannot write .*: No such file or directory"):
        write_detections(tmp_path / "none" / "found.json", Detections(1, place, box, torch.ones(1), place))
    assert not list(tmp_path.iterdir())


# Bad files: one line that names the file and the entry


def changed(part: str, index: int, **values: Any) -> dict[str, Any]:
    """TRUTH with one entry changed; a value of `...` removes the key."""
    entries = [dict(e) for e in TRUTH[part]]
    entries[index] = {k: v for k, v in (entries[index] | values).items() if v is not ...}
    return TRUTH | {part: entries}


BAD_TRUTH: list[tuple[Any, str]] = [
    ("", "not JSON: line 1 column 1: Expecting value"),
    ('{"images": [', "not JSON: line 1 column 13"),
    (b"\xff\xfe\xfa\x00\x00\xd8", "not JSON"),
    ("[" * 100_000, "not JSON"),
    (FOUND, "not a COCO annotations file: .* a list is what --detections takes"),
    (3, "not a COCO annotations file: needs the lists images, annotations, categories"),
    ({k: v for k, v in TRUTH.items() if k != "categories"}, "not a COCO annotations file"),
    (TRUTH | {"annotations": {}}, "not a COCO annotations file"),
    (TRUTH | {"annotations": []}, "there is no annotation, so nothing to score against"),
    (TRUTH | {"annotations": [TRUTH["annotations"][0] | {"iscrowd": 1}]}, "there is no annotation"),
    (TRUTH | {"images": [3]}, r"images\[0\] is not an object with keys, but 3"),
    (changed("images", 1, id=40), r"images\[1\]: id 40 occurs twice"),
    (changed("images", 1, id=7.05), r"images\[1\]: id 7.05 is neither an integer nor a text"),
    (
        changed("images", 1, id="7"),
        r'annotations\[0\]: there is no image with the id 7 .* but "7": numbers and',
    ),
    (changed("categories", 0, id=...), r"categories\[0\] has no 'id', only \[\"name\"\]"),
    (changed("annotations", 2, image_id=8), r"annotations\[2\]: there is no image with the id 8"),
    (
        changed("annotations", 2, image_id=True),
        r"annotations\[2\]: image_id true is neither an integer nor a text",
    ),
    (changed("annotations", 0, category_id=4), r"annotations\[0\]: there is no category with the id 4"),
    (changed("annotations", 1, bbox=...), r"annotations\[1\] has no 'bbox', only \[\"id\", \"image_id\", "),
    (
        changed("annotations", 1, bbox=[1, 2, 0, 4]),
        r"annotations\[1\]: bbox \[1, 2, 0, 4\] is of zero or negative",
    ),
    (changed("annotations", 1, bbox=[1, 2, 3, -4]), r"annotations\[1\]: bbox .* is of zero or negative size"),
    (
        changed("annotations", 1, bbox=[1, 2, 3]),
        r"annotations\[1\]: bbox \[1, 2, 3\] is not four finite numbers",
    ),
    (
        changed("annotations", 1, bbox=[1, 2, 3, math.nan]),
        r"annotations\[1\]: bbox .*NaN\] is not four finite",
    ),
    (changed("annotations", 1, bbox=[1, 2, 3, 10**400]), r"annotations\[1\]: bbox .* is not four finite"),
    (changed("annotations", 1, iscrowd="0"), r'annotations\[1\]: iscrowd "0" is neither 0 nor 1'),
    (changed("annotations", 1, iscrowd=None), r"annotations\[1\]: iscrowd null is neither 0 nor 1"),
    (changed("annotations", 1, iscrowd=2), r"annotations\[1\]: iscrowd 2 is neither 0 nor 1"),
    (
        changed("annotations", 1, bbox=..., segmentation={"size": [4, 4], "counts": [3, 4]}),
        r"annotations\[1\]: segmentation .* has counts for 7 pixels, but a size of 4x4",
    ),
    (
        changed("annotations", 1, bbox=None, segmentation={"size": [4, 4], "counts": "P"}),
        r"annotations\[1\]: segmentation .* has counts that are cut short",
    ),
    (changed("annotations", 1, bbox=[], segmentation=[[1, 2, 3]]), r"segmentation .* is no list of polygons"),
    (
        changed("annotations", 1, bbox=..., segmentation={"size": [4, 4], "counts": [16]}),
        r"annotations\[1\]: bbox \[0.0, 0.0, 0.0, 0.0\] is of zero or negative size",
    ),
    (b"\x1f\x8b\x08 and no more", "begins as a gzip file, but cannot be unpacked"),
    (changed("images", 0, file_name=3), r"images\[0\]: file_name 3 is not a text"),
    (changed("annotations", 1, bbox=[3e38, 2, 3e38, 1]), r"annotations\[1\]: bbox .* is out of range"),
    (changed("annotations", 1, bbox=[0, 0, 10**39, 1]), r"annotations\[1\]: bbox .* is not four finite"),
    (
        changed("annotations", 1, **{"bbox": ..., "a\nb\ud800": 1}),
        r"annotations\[1\] has no 'bbox', only .*a.nb.ud8",
    ),
    (changed("annotations", 1, bbox="box"), r"annotations\[1\]: bbox \"box\" is not four finite numbers"),
]
BAD_FOUND: list[tuple[Any, str]] = [
    ("", "not JSON"),
    (TRUTH, "not a COCO results list, .* an annotations file is what --truth takes"),
    ("null", "not a COCO results list"),
    ([FOUND[0], [1, 2]], r"detections\[1\] is not an object with keys, but \[1, 2\]"),
    *(
        ([FOUND[0], {k: v for k, v in FOUND[1].items() if k != key}], rf"detections\[1\] has no '{key}'")
        for key in FOUND[0]
    ),
    *(
        ([FOUND[0], FOUND[1] | {key: value}], rf"detections\[1\]: {key} {message}")
        for key, value, message in (
            ("score", math.nan, "NaN is not a finite number"),
            ("score", math.inf, "Infinity is not a finite number"),
            ("score", "0.5", '"0.5" is not a finite number'),
            ("score", True, "true is not a finite number"),
            ("score", 1.5, r"1.5 is not in 0\.\.1; .* give --present"),
            ("score", -0.1, r"-0.1 is not in 0\.\.1"),
            ("bbox", [1, 2, 3, 0], ".*0] is of zero or negative size"),
            ("bbox", [1, 2, -3, 3], ".* is of zero or negative size"),
            ("bbox", [1, math.inf, 3, 3], ".* is not four finite numbers"),
            ("bbox", [1, 2, 3, None], ".* is not four finite numbers"),
            ("bbox", None, "null is not four finite numbers"),
            ("category_id", -2, "-2 .the cluster. is not an integer from 0, or -1 for noise"),
            ("category_id", "a", '"a" .the cluster. is not an integer from 0'),
            ("category_id", 1.0, "1.0 .the cluster. is not an integer from 0"),
            ("category_id", 2**63, ".* is not an integer from 0"),
            ("category_id", None, "null .the cluster. is not an integer from 0"),
            ("image_id", 7.0, "7.0 is neither an integer nor a text"),
        )
    ),
    ([FOUND[0] | {"image_id": 8}], r"detections\[0\]: there is no image with the id 8 in the truth"),
]


def write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(("content", "message"), BAD_TRUTH)
def test_bad_truth(files: tuple[Path, Path], content: Any, message: str) -> None:
    write(files[0], content)
    with pytest.raises(UsageError, match=message) as error:
        read_truth(files[0])
    assert str(error.value).startswith(str(files[0]))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(files[0])) + 250


@pytest.mark.parametrize(("content", "message"), BAD_FOUND)
def test_bad_detections(files: tuple[Path, Path], content: Any, message: str) -> None:
    write(files[1], content)
    with pytest.raises(UsageError, match=message) as error:
        read_detections(files[1], [40, 7])
    assert str(error.value).startswith(str(files[1]))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*no.json: No such file"):
        read_truth(tmp_path / "no.json")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        read_detections(tmp_path, [1])


# Running metrics


def broken(detections: Detections, truth: GroundTruth) -> dict[str, float]:
    print("on its way")
    raise RuntimeError("two\nlines")


def not_numbers(detections: Detections, truth: GroundTruth) -> dict[str, Any]:
    return {"words": "many"}


def clash(detections: Detections, truth: GroundTruth) -> dict[str, Any]:
    return {"boxes": 1}


def boxes(detections: Detections, truth: GroundTruth) -> dict[str, Any]:
    return {"boxes": len(detections.scores)}


def registry_of(*names: str) -> Registry:
    registry = Registry()
    for name in names:
        registry.metrics[name] = MetricSpec(name, "", f"{__name__}:{name}", version=3)
        registry.owners["metric", name] = ["tests"]
    return registry


BOX = torch.tensor([[0.0, 0, 4, 4]])
ONE = GroundTruth.of([BOX], [torch.zeros(1)])


def one(**changes: Any) -> Detections:
    """One perfect detection in one image, with these fields changed."""
    fields = {
        "image": torch.zeros(1).long(),
        "boxes": BOX,
        "scores": torch.ones(1),
        "clusters": torch.zeros(1),
    }
    return Detections(**{"images": 1, **fields, **changes})


def test_a_metric_that_fails_is_named_and_harms_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    registry = registry_of("broken", "boxes", "not_numbers", "clash", "missing")
    complaints: list[str] = []
    assert scoring.score(registry, one(), ONE, complaints.append) == {"boxes": 1.0}
    said = r"metric 'broken' failed: RuntimeError: two lines \(test_score\.py, line \d+\)"
    assert re.fullmatch(said, complaints[0])
    assert complaints[1].startswith("metric 'not_numbers' failed: ValueError: could not convert")
    assert (
        complaints[2]
        == "metric 'clash' failed: ValueError: it returns 'boxes', which metric 'boxes' has returned already"
    )
    assert complaints[3].startswith("metric 'missing' failed: AttributeError")
    assert scoring.metric_versions(registry)["boxes"] == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "on its way\n")


def test_a_failing_metric_is_told_on_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    scoring.score(registry_of("broken"), one(), ONE)
    assert "objbench: metric 'broken' failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 2}, "detections of 2 images, but the truth of 1"),
        ({"image": torch.tensor([1])}, "1 of 1 detections have an image index out of range"),
        ({"image": torch.tensor([-1])}, "an image index out of range"),
        ({"boxes": BOX * math.nan}, "a box that is not finite"),
        ({"scores": torch.tensor([math.nan])}, r"a score that is not in 0\.\.1"),
        ({"scores": torch.tensor([1.1])}, r"a score that is not in 0\.\.1"),
        ({"clusters": torch.tensor([-2])}, r"a negative cluster other than -1 \(noise\)"),
    ],
)
def test_detections_that_break_their_contract_are_not_scored(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scoring.score(registry_of("boxes"), one(**changes), ONE)


# The command


def test_json_has_every_value_of_every_metric(files: tuple[Path, Path]) -> None:
    result = run(*files, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert [row["class"] for row in values.pop("classes")] == ["a", "b"]
    there = read_truth(files[0])
    found = read_detections(files[1], there.image_ids)
    assert values == pytest.approx(scoring.score(load_plugins(), found, there.truth))
    assert values["ap50"] == values["acc"] == 1
    assert values["count_error"] == 0.5
    assert result.stderr == ""


def test_table_gives_definitions_and_values(files: tuple[Path, Path]) -> None:
    lines = run(*files).stdout.splitlines()
    for spec in load_plugins().metrics.values():
        assert f"{spec.name}: {spec.summary}" in lines
    assert "    ap50                 1.0000" in lines


def test_nothing_found_scores_zero_and_is_said(files: tuple[Path, Path]) -> None:
    files[1].write_text("[]")
    result = run(*files, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ap50"] == 0
    assert "holds no detections" in result.stderr


def test_no_clusters_is_null_in_json_and_undefined_in_the_table(files: tuple[Path, Path]) -> None:
    files[1].write_text(json.dumps([f | {"category_id": None} for f in FOUND]))
    assert json.loads(run(*files, "--json").stdout)["acc"] is None
    assert "    acc                  undefined" in run(*files).stdout.splitlines()


def test_scores_that_never_reach_the_threshold_are_told(files: tuple[Path, Path]) -> None:
    files[1].write_text(json.dumps([f | {"score": f["score"] / 10} for f in FOUND]))
    low = run(*files, "--json")
    assert "no score reaches 0.5: the clustering and count figures" in low.stderr
    assert json.loads(low.stdout)["ap50"] == 1
    assert json.loads(low.stdout)["acc"] == 0
    told = run(*files, "--json", "--present", "0.05")
    assert told.stderr == ""
    assert json.loads(told.stdout)["acc"] == 1
    assert json.loads(told.stdout)["count_error"] == 0.5
    assert "no score reaches 7" in run(*files, "--present", "7").stderr


def test_logits_are_scored_with_a_threshold(files: tuple[Path, Path]) -> None:
    files[1].write_text(json.dumps([f | {"score": s} for f, s in zip(FOUND, (3, -1, 10**25), strict=True)]))
    assert isinstance(run(*files).exception, UsageError)
    values = json.loads(run(*files, "--present", "0", "--json").stdout)
    assert values["count_error"] == 0.5
    assert isinstance(run(*files, "--present", "nan").exception, UsageError)


def test_a_metric_from_a_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    plugin = tmp_path / "extra_metrics.py"
    plugin.write_text(
        "from objbench import MetricSpec, hookimpl\n"
        "def boxes(detections, truth):\n    return {'boxes': len(detections.scores)}\n"
        "def fails(detections, truth):\n    raise KeyError('x')\n"
        "@hookimpl\ndef objbench_metrics():\n"
        "    return [MetricSpec(n, 'mine', f'extra_metrics:{n}') for n in ('boxes', 'fails')]\n"
    )
    result = run(*files, "--json", "--plugin", str(plugin))
    assert json.loads(result.stdout)["boxes"] == 3
    assert json.loads(result.stdout)["ap50"] == 1
    assert "objbench: metric 'fails' failed: KeyError: 'x'" in result.stderr
    assert result.exit_code == 1


def test_from_the_shell(files: tuple[Path, Path]) -> None:
    """Values on stdout and 0; for a bad file one line on stderr and 2."""
    command = [
        Path(sys.executable).parent / "objbench",
        "score",
        "--truth",
        files[0],
        "--detections",
        files[1],
    ]
    good = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["nmi"] == 1
    files[1].write_text(json.dumps([FOUND[0] | {"bbox": [1, 2, 0, 4]}]))
    bad = subprocess.run(command, capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == (
        f"objbench: {files[1]}: detections[0]: bbox [1, 2, 0, 4] is of zero or negative size "
        "([x, y, width, height]); --skip-invalid leaves such entries out\n"
    )
