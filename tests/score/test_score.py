"""COCO files in and out, `objbench score`, and the running of metrics that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import io
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

from fuzzing import JUNK, fuzz
from fuzzing import changed as mutated
from objbench.coco import (
    mask_box,
    read_detections,
    read_images,
    read_truth,
    write_detections,
    write_truth,
)
from objbench.commands.score import score
from objbench.detector import Detections
from objbench.errors import UsageError
from objbench.hookspecs import MetricSpec
from objbench.plugins import Registry, load_plugins, load_target
from objbench.scenes import GroundTruth
from objbench.score import metrics as scoring

TRUTH: dict[str, Any] = {
    "images": [{"id": 40}, {"id": 7}],
    "categories": [{"id": 9, "name": "b"}, {"id": 3, "name": "a"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 40, "category_id": 9, "bbox": [10.5, 0, 2.5, 8], "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 9, "bbox": [20, 20, 5, 5]},
    ],
}
UNNUMBERED = {key: value for key, value in TRUTH["annotations"][0].items() if key != "id"}
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
    assert json.loads((tmp_path / "t.json").read_text())["info"]  # 2.0.9 cannot do without
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
        with pytest.raises(ValueError, match=r"1 of \d+ detections have a"):
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
    ("", "not JSON: it is empty"),
    (" " * 600, "not JSON: line 1 column 601: Expecting value"),
    ("\n<!DOCTYPE html><title>404</title>", "not JSON: it is a page of HTML"),
    (b"PK\x03\x04and so on", "not JSON: it is compressed with zip; unpack it"),
    (
        gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
        "not JSON: it is compressed with gzip; unpack it",
    ),
    ("version https://git-lfs.github.com/spec/v1", "not JSON: it is a pointer of Git LFS"),
    ('{"images": [', "not JSON: line 1 column 13"),
    (b"\xff\xfe\xfa\x00\x00\xd8", "not JSON"),
    ("[" * 100_000, "not JSON"),
    (FOUND, "not a COCO annotations file: .* a list is what --detections takes"),
    (3, "not a COCO annotations file: needs the lists images, annotations, categories"),
    ({k: v for k, v in TRUTH.items() if k != "categories"}, "not a COCO annotations file"),
    (TRUTH | {"annotations": {}}, "not a COCO annotations file"),
    (TRUTH | {"annotations": []}, "there is no annotation, so nothing to score against"),
    (
        TRUTH | {"annotations": [TRUTH["annotations"][0] | {"iscrowd": 1}]},
        r"none of the 1 annotations counts \(1 are crowds\)",
    ),
    (TRUTH | {"images": [3]}, r"images\[0\] is not a JSON object, but 3"),
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
    (b"\x1f\x8b\x08 and no more", "starts like a gzip file, but cannot be decompressed"),
    (changed("images", 0, file_name=3), r"images\[0\]: file_name 3 is not a text"),
    (changed("annotations", 1, bbox=[3e38, 2, 3e38, 1]), r"annotations\[1\]: bbox .* is out of range"),
    (changed("annotations", 1, bbox=[0, 0, 10**39, 1]), r"annotations\[1\]: bbox .* is out of range"),
    (changed("annotations", 1, bbox=[0, 0, 1e-200, 1e-100]), r"bbox .* is of zero or negative size"),
    (
        changed("annotations", 1, **{"bbox": ..., "a\nb\ud800": 1}),
        r"annotations\[1\] has no 'bbox', only .*a.nb.ud8",
    ),
    (
        changed("annotations", 2, id=1),
        r"annotations\[2\]: id 1 is also the id of annotations\[0\]; number the annotations anew",
    ),
    (changed("annotations", 1, id=[2]), r"annotations\[1\]: id \[2\] is neither an integer nor a text"),
    (changed("annotations", 1, id=True), r"annotations\[1\]: id true is neither an integer nor a text"),
    (changed("annotations", 1, bbox="box"), r"annotations\[1\]: bbox \"box\" is not four finite numbers"),
]
BAD_FOUND: list[tuple[Any, str]] = [
    ("", "not JSON"),
    (TRUTH, "not a COCO results list, .* an annotations file is what --truth takes"),
    (changed("annotations", 0, score=0.5), r"annotations\[1\] has no 'score'"),
    ("null", "not a COCO results list"),
    ([FOUND[0], [1, 2]], r"detections\[1\] is not a JSON object, but \[1, 2\]"),
    *(
        ([FOUND[0], {k: v for k, v in FOUND[1].items() if k != key}], rf"detections\[1\] has no '{key}'")
        for key in FOUND[0]
    ),
    *(
        ([FOUND[0], FOUND[1] | {key: value}], rf"detections\[1\]: {key} {message}")
        for key, value, message in (
            ("score", math.nan, "NaN is not a finite number"),
            ("score", 1e308, r"1e\+308 is out of range"),
            ("score", math.inf, "Infinity is not a finite number"),
            ("score", "0.5", '"0.5" is not a finite number'),
            ("score", True, "true is not a finite number"),
            ("score", 1.5, r"1.5 is not in 0\.\.1; .* use --present"),
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


# What else a file may be


def test_ids_may_be_texts_and_are_kept_as_they_are(files: tuple[Path, Path]) -> None:
    images = [{"id": "000001"}, {"id": 1}, {"id": "1"}]
    entries = [UNNUMBERED | {"image_id": row["id"], "category_id": "dog"} for row in images]
    write(files[0], {"images": images, "annotations": entries, "categories": [{"id": "dog"}, {"id": 2}]})
    write(files[1], [FOUND[0] | {"image_id": row["id"], "category_id": "a"} for row in images])
    there = read_truth(files[0])
    assert there.image_ids == ["000001", 1, "1"]
    assert there.truth.labels.tolist() == [1, 1, 1]
    assert there.class_names == ["2", "dog"]
    found = read_detections(files[1], there)
    assert found.image.tolist() == [0, 1, 2]
    assert found.clusters is not None
    assert found.clusters.tolist() == [0, 0, 0]


@pytest.mark.slow
def test_gzip_is_reported_by_its_content(files: tuple[Path, Path]) -> None:
    before = run(*files, "--json").stdout
    for file in files:
        file.write_bytes(gzip.compress(file.read_bytes()))
    assert run(*files, "--json").stdout == before
    files[1].write_bytes(files[1].read_bytes()[:-9])
    assert "cannot be decompressed" in str(run(*files).exception)


def test_crowds_may_be_written_as_true(files: tuple[Path, Path]) -> None:
    for value, crowds in ((True, 1), (False, 0), (1.0, 1), (0.0, 0)):
        write(files[0], changed("annotations", 1, iscrowd=value))
        assert read_truth(files[0]).crowds == crowds


@pytest.mark.slow
def test_a_data_set_with_scores_is_detections(files: tuple[Path, Path]) -> None:
    before = run(*files, "--json").stdout
    write(files[1], {"images": TRUTH["images"], "annotations": FOUND, "categories": []})
    assert run(*files, "--json").stdout == before
    named = [{"id": 40, "file_name": "a/x.png"}, {"id": 7, "file_name": "y.png"}]
    write(files[0], TRUTH | {"images": named})
    write(files[1], {"images": [{"id": 7, "file_name": "x.png"}], "annotations": FOUND})
    error = run(*files).exception
    assert isinstance(error, UsageError)
    assert 'image 7 is "x.png", but "y.png" in the truth' in str(error)


def test_boxes_of_masks_are_those_of_pycocotools(files: tuple[Path, Path]) -> None:
    from pycocotools import mask as coco_mask

    draw = np.random.default_rng(0)
    for _ in range(300):
        height, width = draw.integers(1, 12, 2).tolist()
        pixels = (draw.random((height, width)) < draw.choice([0.03, 0.2, 0.9])).astype(np.uint8)
        coded = coco_mask.encode(np.asfortranarray(pixels))
        flat = np.concatenate([[0], pixels.T.ravel(), [2]])
        changes = np.flatnonzero(np.diff(flat))
        counts = np.diff(changes, prepend=0).tolist()
        expected = coco_mask.toBbox(coded).tolist()
        assert mask_box({"size": [height, width], "counts": coded["counts"].decode()}) == expected
        assert mask_box({"size": [height, width], "counts": counts}) == expected
    assert mask_box([[1, 2, 5, 2, 5, 9.5], [0.5, 4, 1, 4, 1, 6]]) == [0.5, 2, 4.5, 7.5]

    masked = {"bbox": ..., "segmentation": {"size": [64, 64], "counts": [64 + 2, 4, 60, 4, 60, 4, 3898]}}
    write(files[0], changed("annotations", 0, **masked))
    assert read_truth(files[0]).truth.boxes[1].tolist() == [1, 2, 4, 6]


@pytest.mark.slow
def test_what_is_invalid_can_be_left_out_and_is_counted(files: tuple[Path, Path]) -> None:
    bad = [
        UNNUMBERED | {"bbox": [1, 2, 0, 4]},
        UNNUMBERED | {"bbox": [1, 2, 3, -4]},
        UNNUMBERED | {"bbox": [1, 2, math.nan, 4]},
        UNNUMBERED | {"image_id": 8},
        UNNUMBERED | {"category_id": 8},
    ]
    before = json.loads(run(*files, "--json").stdout)
    write(files[0], TRUTH | {"annotations": [*bad, *TRUTH["annotations"]]})
    write(files[1], [*FOUND, FOUND[0] | {"image_id": 8}, FOUND[0] | {"bbox": [0, 0, 0, 0]}])
    assert "--skip-invalid leaves such entries out" in str(run(*files).exception)
    result = run(*files, "--json", "--skip-invalid")
    assert json.loads(result.stdout) == before
    assert result.stderr.splitlines() == [
        f"objbench: {files[0]}: annotations: 5 of 8 are left out: 1 of images that are not listed, 1 of "
        "categories that are not listed, 2 with a bbox of no size, 1 with a bbox that is not finite",
        f"objbench: {files[1]}: detections: 2 of 5 are left out: 1 of images that are not listed, "
        "1 with a bbox of no size",
    ]


@pytest.mark.slow
def test_boxes_of_another_convention_are_pointed_out(files: tuple[Path, Path]) -> None:
    sized = TRUTH | {"images": [row | {"width": 64, "height": 64} for row in TRUTH["images"]]}
    write(files[0], sized)
    assert run(*files).stderr == ""
    write(files[1], [FOUND[0] | {"bbox": box} for box in ([10, 20, 60, 50], [30, 30, 40, 44])])
    assert "look like [x0, y0, x1, y1]" in run(*files).stderr
    write(files[1], [FOUND[0] | {"bbox": box} for box in ([0.1, 0.2, 0.5, 0.5], [0, 0, 0.25, 1])])
    assert "like shares of the image size" in run(*files).stderr
    write(files[0], sized | {"annotations": [TRUTH["annotations"][0] | {"bbox": [10, 20, 60, 50]}]})
    assert f"{files[0]}: annotations: boxes leave their images" in run(*files).stderr


@pytest.mark.slow
def test_numbers_are_not_rounded_before_they_are_compared(files: tuple[Path, Path]) -> None:
    """Boxes far from the origin with an IoU of .43, and scores that float32 takes for 1."""
    far = [500000.5, 4649776.3, 1.0, 1.0]
    write(files[0], TRUTH | {"annotations": [TRUTH["annotations"][0] | {"bbox": far}]})
    write(files[1], [FOUND[0] | {"bbox": [500000.5, 4649776.7, 1.0, 1.0]}])
    values = json.loads(run(*files, "--json", "--iou", "0.42", "--iou", "0.43").stdout)
    assert values["ap50"] == values["coco_ap"] == values["coco_ap@0.43"] == 0
    assert values["coco_ap@0.42"] == pytest.approx(1)

    write(files[0], TRUTH)
    scores = (1 - 3e-9, 1 - 1e-9, 1 - 2e-9, 1 - 1.5e-9)
    boxes = ([200, 200, 5, 5], *(entry["bbox"] for entry in TRUTH["annotations"]))
    images = (7, 7, 40, 7)
    rows = zip(scores, boxes, images, strict=True)
    write(files[1], [FOUND[0] | {"score": s, "bbox": b, "image_id": i} for s, b, i in rows])
    values = json.loads(run(*files, "--json").stdout)
    assert values["ap50"] == values["coco_ap"] == 1


@pytest.mark.slow
def test_no_order_of_the_list_matters(files: tuple[Path, Path]) -> None:
    boxes = [[0, 0, 20, 20], [30, 30, 20, 20], [70, 70, 20, 20], [100, 100, 20, 20]]
    there = [UNNUMBERED | {"bbox": box} for box in boxes[:2]]
    write(files[0], TRUTH | {"annotations": there})
    for order in (boxes, boxes[::-1]):
        write(files[1], [FOUND[0] | {"bbox": box, "score": 0.6} for box in order])
        values = json.loads(run(*files, "--json").stdout)
        assert values["coco_ap"] == pytest.approx(0.5)
        assert values["ap50"] == 0.5


def test_all_of_an_image_that_holds_many_are_counted(files: tuple[Path, Path]) -> None:
    boxes = [[20 * (i % 15), 20 * (i // 15), 9, 9] for i in range(150)]
    write(files[0], TRUTH | {"annotations": [UNNUMBERED | {"bbox": box} for box in boxes]})
    write(files[1], [FOUND[0] | {"bbox": box, "score": 1 - i / 1000} for i, box in enumerate(boxes)])
    values = json.loads(run(*files, "--json").stdout)
    assert values["coco_ap"] == values["coco_ar"] == values["coco_ap75"] == values["ap50"] == 1


@pytest.mark.slow
def test_a_row_for_each_class(files: tuple[Path, Path]) -> None:
    """Class a is in cluster 4 and found; of class b one is in cluster 0, one in noise, one not found."""
    b = TRUTH["annotations"][1]
    more = [b | {"id": 8, "bbox": [30, 30, 4, 4]}, b | {"id": 9, "bbox": [50, 50, 4, 4]}]
    kinds = [*TRUTH["categories"], {"id": 12, "name": "none of it"}]
    write(files[0], TRUTH | {"annotations": [*TRUTH["annotations"][:2], *more], "categories": kinds})
    noise = FOUND[2] | {"bbox": [30, 30, 4, 4], "category_id": -1}
    write(files[1], [FOUND[0], FOUND[2], noise])
    rows = json.loads(run(*files, "--json").stdout)["classes"]
    whole = {"objects": 1, "found": 1, "cluster": 4, "right": 1, "ap50": 1}
    assert rows[0] == {"class": "a"} | whole
    third = pytest.approx(1 / 3)
    assert rows[1] == {
        "class": "b", "objects": 3, "found": pytest.approx(2 / 3), "cluster": 0, "right": 0.5, "ap50": third,
    }  # fmt: skip
    nothing = dict.fromkeys(("found", "cluster", "right", "ap50"))
    assert rows[2] == {"class": "none of it", "objects": 0} | nothing
    lines = run(*files).stdout.splitlines()
    assert lines[-4].split() == ["class", "objects", "found", "cluster", "right", "ap50"]
    assert lines[-2].split() == ["b", "3", "0.6667", "0", "0.5000", "0.3333"]
    write(files[1], [entry | {"category_id": None} for entry in FOUND])
    rows = json.loads(run(*files, "--json").stdout)["classes"]
    assert [row["found"] for row in rows] == [1, pytest.approx(1 / 3), None]
    assert {row["cluster"] for row in rows} == {row["ap50"] for row in rows} == {None}


def test_a_threshold_that_cannot_be_is_refused(files: tuple[Path, Path]) -> None:
    for value in ("0", "1.5", "nan"):
        assert isinstance(run(*files, "--iou", value).exception, UsageError)


def test_images_of_a_file(files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"images\[0\] has no 'file_name'"):
        read_images(files[0])
    write(files[0], {"images": [{"id": "a", "file_name": "b.png"}]})
    assert [(row.id, row.file_name) for row in read_images(files[0])] == [("a", "b.png")]


# Whatever a file holds: a clear line, or a right answer


MASKED = changed("annotations", 0, bbox=..., segmentation={"size": [9, 9], "counts": [3, 4, 74]})


@fuzz
@given(st.data())
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    truth, detections = folder / "fuzz-truth.json", folder / "fuzz-found.json"
    times = st.integers(0, 3)
    write(truth, mutated(data.draw, data.draw(st.sampled_from([TRUTH, MASKED])), data.draw(times)))
    whole = {"images": TRUTH["images"], "annotations": FOUND}
    write(detections, mutated(data.draw, data.draw(st.sampled_from([FOUND, whole])), data.draw(times)))
    skip = data.draw(st.booleans())
    said: list[str] = []
    try:
        there = read_truth(truth, skip, said.append)
        found = read_detections(detections, there, data.draw(st.none() | st.just(0.3)), skip, said.append)
    except UsageError as error:
        said.append(str(error))
    else:
        scoring.check(found, there.truth)
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (there.truth.boxes[:, 2:] > there.truth.boxes[:, :2]).all()
        assert (there.truth.image.diff() >= 0).all()
        values = scoring.score(load_plugins(()), found, there.truth, said.append)
        assert {"ap50", "acc", "nmi", "count_error", "coco_ap", "ap50_gmair", "f1"} < values.keys()
    assert all("\n" not in line and len(line) < 500 for line in said)


@fuzz
@given(st.binary(max_size=40), st.sampled_from([b"", b"\x1f\x8b", b"[", b'{"images": [', b"\xef\xbb\xbf[]"]))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.json"
    file.write_bytes(start + data)
    with contextlib.suppress(UsageError):
        assert not len(read_detections(file, [1]).scores)
    with pytest.raises(UsageError) as error:
        read_truth(file)
    assert "\n" not in str(error.value)


@fuzz
@given(JUNK | st.lists(JUNK, max_size=3) | st.fixed_dictionaries({
    "size": st.lists(st.integers(-1, 9), max_size=3), "counts": st.text(max_size=9) | st.lists(st.integers(-1, 99)),
}))  # fmt: skip
def test_any_mask_has_a_box_or_is_refused(segmentation: Any) -> None:
    try:
        x, y, width, height = mask_box(segmentation)
    except ValueError:
        return
    if isinstance(segmentation, dict):
        assert 0 <= x <= x + width <= segmentation["size"][1]
        assert 0 <= y <= y + height <= segmentation["size"][0]


QUARTERS = st.integers(0, 60).map(lambda n: n / 4)
CORNERS = st.tuples(QUARTERS, QUARTERS, QUARTERS.filter(bool), QUARTERS.filter(bool)).map(list)


@fuzz
@given(st.lists(st.tuples(st.sampled_from([3, 1, 2]), CORNERS), min_size=1, max_size=12), st.data())
def test_a_file_scores_what_pycocotools_says(
    tmp_path_factory: pytest.TempPathFactory, objects: list[tuple[int, list[float]]], data: st.DataObject
) -> None:
    """On coordinates that are exact in binary, and scores of which no two are equal."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    boxes = data.draw(
        st.lists(
            st.tuples(st.sampled_from([3, 1, 2]), CORNERS) | st.sampled_from(objects), min_size=1, max_size=15
        )
    )
    # pycocotools takes the last of equals; ours is the last by box
    objects.sort(key=lambda row: (row[1][0], row[1][1], row[1][0] + row[1][2], row[1][1] + row[1][3]))
    folder = tmp_path_factory.getbasetemp()
    annotations = [
        {"id": i, "image_id": image, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0}
        for i, (image, box) in enumerate(objects, 1)
    ]
    write(
        folder / "same-truth.json",
        {
            "info": {},
            "images": [{"id": i} for i in (3, 1, 2)],
            "categories": [{"id": 1}],
            "annotations": annotations,
        },
    )
    order = data.draw(st.permutations(range(len(boxes))))
    write(
        folder / "same-found.json",
        [
            {"image_id": image, "category_id": 1, "bbox": box, "score": 1 / (2 + rank)}
            for rank, (image, box) in zip(order, boxes, strict=True)
        ],
    )
    there = read_truth(folder / "same-truth.json")
    ours = load_target("objbench_plugins.metrics.detection:coco_ap")(
        read_detections(folder / "same-found.json", there), there.truth
    )
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO(str(folder / "same-truth.json"))
        evaluation = COCOeval(annotated, annotated.loadRes(str(folder / "same-found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(ours.values()) == pytest.approx(evaluation.stats[[0, 2, 8]].tolist(), abs=1e-12)


def test_annotations_need_no_id_and_ids_of_two_types_differ(tmp_path: Path) -> None:
    without = [{k: v for k, v in entry.items() if k != "id"} for entry in TRUTH["annotations"]]
    for entries in (without, [without[0] | {"id": 2}, without[1] | {"id": "2"}, without[2]]):
        write(tmp_path / "truth.json", TRUTH | {"annotations": entries})
        assert len(read_truth(tmp_path / "truth.json").truth.labels) == 3


@pytest.mark.parametrize(
    ("width", "factor", "said"),
    [
        (None, 1, "the images have no width and height, and all boxes could be [x0, y0, x1, y1]"),
        (150, 1, "boxes leave their images and look like [x0, y0, x1, y1]"),
        (None, 0.5, ""),  # [10, 5, 8.0, 14.0]: such an x1 is left of its x0
        (300, 1, ""),
    ],
)
def test_boxes_that_look_like_corners_are_reported_with_and_without_sizes(
    tmp_path: Path, width: int | None, factor: float, said: str
) -> None:
    corners = [[10 * i, 5 * i, 10 * i + 6 * factor * (i - 0.5), 5 * i + 9] for i in range(1, 7)]
    truth = {
        "images": [{"id": i} | ({"width": width, "height": width // 2} if width else {}) for i in (1, 2)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {
                "id": i,
                "image_id": 1 + i % 2,
                "category_id": 1,
                "bbox": corner if factor == 1 else [corner[0], corner[1], 8.0, 14.0],
            }
            for i, corner in enumerate(corners)
        ],
    }
    write(tmp_path / "truth.json", truth)
    lines: list[str] = []
    read_truth(tmp_path / "truth.json", tell=lines.append)
    where = f"{tmp_path / 'truth.json'}: annotations: "
    assert lines == ([f"{where}{said}; bbox must be [x, y, width, height]"] if said else [])


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
    assert registry.metric_versions["boxes"] == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "on its way\n")


def test_a_failing_metric_is_reported_on_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
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
        ({"boxes": BOX.flip(1)}, r"a box without size \(boxes are x0, y0, x1, y1\)"),
        ({"what": torch.tensor([[math.inf]])}, "a what-latent that is NaN or infinite"),
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
    scored = scoring.score(load_plugins(), found, there.truth)
    assert values == pytest.approx({k: None if math.isnan(v) else v for k, v in scored.items()})
    assert {k for k, v in values.items() if v is None} == {
        "fg_ari",
        "mbo",
        "mask_ap",
        "mask_ap50",
    }  # no masks
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


@pytest.mark.slow
def test_no_clusters_is_null_in_json_and_undefined_in_the_table(files: tuple[Path, Path]) -> None:
    files[1].write_text(json.dumps([f | {"category_id": None} for f in FOUND]))
    assert json.loads(run(*files, "--json").stdout)["acc"] is None
    assert "    acc                  undefined" in run(*files).stdout.splitlines()


@pytest.mark.slow
def test_scores_that_never_reach_the_threshold_are_reported(files: tuple[Path, Path]) -> None:
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


@pytest.mark.slow
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
