"""The page: what it holds, that labels are never markup, and that it works in a browser, where there is one."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from objbench.cells.identity import Cell, Training, write_cell
from objbench.cells.result import Position, Trained
from objbench.cells.store import write_curve, write_record, write_trained
from objbench.commands import cli
from objbench.detector import Detections
from objbench.mistakes import verdicts
from objbench.plugins import load_plugins
from objbench.report.page import errors
from objbench.report.page.content import command_of
from objbench.scenes import GroundTruth
from objbench.score.arrays import flat, save_tensors
from objbench.score.metrics import by_these_metrics, score

EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
SCENES = 6
SLOW_MS = 180_000
"""A browser on a machine that does much else may take so long, in milliseconds."""


def stored(
    out: Path,
    model: str,
    seed: int,
    found_share: float,
    pictures: bool,
    data: str = "squares",
    steps: bool = True,
    replaced: bool = False,
) -> None:
    """A finished cell of scenes of two objects, the first of which is found in a share of them, the second always.

    steps: whether it was trained by steps. replaced: whether another cell has its clusters replaced by a clusterer.
    """
    registry = load_plugins()
    identity: dict[str, Any] = {"model": model, "data": data, "seed": seed, "protocol": {"name": "demo"}}
    identity |= {"model_config": {"lr": 0.5}, "data_config": {}}
    about = {"model": {"settings": {"lr": 0.1}, "label": model, "clusters": True}}
    cell = Cell(Training(identity, {}, {}, {}, about), {"name": "own"})
    folder = out / "cells" / cell.key
    folder.mkdir(parents=True)
    write_cell(folder, cell)
    image = torch.arange(SCENES).repeat_interleave(2)
    boxes = torch.tensor([[2.0, 2, 10, 10], [18, 18, 28, 28]]).repeat(SCENES, 1)
    truth = GroundTruth(SCENES, image, boxes, torch.tensor([0, 1]).repeat(SCENES))
    off = (torch.arange(2 * SCENES) % 2 == 0) & (image >= SCENES * found_share)
    moved = torch.where(off[:, None], torch.tensor([2.0, 20, 10, 28]), boxes)
    found = Detections(SCENES, image, moved, torch.full((2 * SCENES,), 0.9), truth.labels)
    save_tensors(folder.parent / "detections.safetensors", flat(found))
    save_tensors(folder.parent / "truth.safetensors", flat(truth))
    files = ["detections.safetensors", "truth.safetensors", "curve.jsonl"]
    if pictures:
        shown = torch.arange(32 * 32 * SCENES).reshape(SCENES, 1, 32, 32) % 255
        save_tensors(folder.parent / "shown.safetensors", {"images": shown.to(torch.uint8)})
        files.append("shown.safetensors")
    figures = score(registry, found, truth)
    curve = [
        {
            "step": k,
            "seconds": k / 9,
            "loss": 9.0 / k,
            "terms": {"recon": 1.0 * k},
            "watch": {},
            "metrics": figures,
        }
        for k in (1, 2, 3)
    ]
    write_curve(folder.parent, curve if steps else [])
    trained = Trained(cell.training.key, Position(), (EVIL, "b"), (1, 32, 32), False, [], {})
    write_trained(folder.parent, trained, files)
    provenance = by_these_metrics(registry, registry.metrics.values())
    write_record(folder, cell.result("done", metrics=figures, seconds=3.0, provenance=provenance))
    if replaced:
        other = Cell(cell.training, {"name": "kmeans", "config": {}, "code": ""}, {"replaces": True})
        folder = out / "cells" / other.key
        folder.mkdir()
        write_cell(folder, other)
        assert found.clusters is not None
        save_tensors(folder / "clusters.safetensors", {"clusters": 1 - found.clusters})
        known = {"metrics": figures, "seconds": 3.0, "clusterer_seconds": 7.0, "provenance": provenance}
        write_record(folder, other.result("done", **known), ["clusters.safetensors"])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two detectors, one of which is named as an attacker would."""
    out = tmp_path_factory.mktemp("store")
    for seed in (0, 1):
        stored(out, "good", seed, 1.0, pictures=seed == 0)
        stored(out, EVIL, seed, 0.5, pictures=False)
        stored(out, "good", seed, 0.7, pictures=False, data="rounds", replaced=True)
        stored(out, "floor", seed, 0.2, pictures=False, data="rounds", steps=False)
    target = out / "page.html"
    ran = CliRunner().invoke(
        cli,
        ["report", "--out", str(out), "--html", str(target), "--resamples", "100"],
        catch_exceptions=False,
    )
    assert ran.exit_code == 0, ran.output
    assert ran.stdout == f"{target}\n"
    return target


@pytest.fixture(scope="module")
def opened(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same page, but two cells of the same seed are compared when it opens."""
    content = content_of(page)
    keys = [
        row["cells"][1]["cell"] for row in content["rows"] if row["cells"][0]["set"] == squares_of(content)
    ]
    target = tmp_path_factory.mktemp("pair") / "page.html"
    words = ["report", "--out", str(page.parent), "--html", str(target), "--resamples", "100"]
    ran = CliRunner().invoke(cli, [*words, "--compare", *keys], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert content_of(target)["pair"] == keys
    return target


def content_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page.read_text(), re.S)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_the_page_holds_scenes_errors_curves_and_provenance(page: Path) -> None:
    content = content_of(page)
    assert sorted(ours["label"] for ours in content["sets"]) == [
        "rounds, protocol demo",
        "squares, protocol demo",
    ]
    squares = next(ours for ours in content["sets"] if ours["label"].startswith("squares"))
    rounds = next(ours for ours in content["sets"] if ours["label"].startswith("rounds"))
    assert len(squares["images"]) == squares["shown"] == SCENES
    assert squares["images"][0].startswith("data:image/png;base64,")
    assert rounds["images"] == []  # their boxes are still drawn
    assert len(rounds["truth"]) == SCENES
    evil = next(row for row in content["rows"] if "script" in row["model"])
    cell = evil["cells"][0]
    assert cell["missing"] == 3  # of six scenes, the second half
    assert dict(zip(content["kinds"], cell["counts"], strict=True))["background"] == 3
    assert cell["missed"] == [[], [], [], [0], [0], [0]]
    assert cell["curve"]["terms"] == {"loss": [9.0, 4.5, 3.0], "recon": [1.0, 2.0, 3.0]}
    html = page.read_text()
    assert (
        "-o good.lr=0.5" in html
    )  # the command that makes a cell again names what is not the protocol's own
    assert len(html) < 400_000


def squares_of(content: dict[str, Any]) -> int:
    """The index of the test set in which the two detectors are."""
    return [ours["label"].startswith("squares") for ours in content["sets"]].index(True)


class Outside(HTMLParser):
    """Collects what a page takes from outside, and how many scripts it has."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.taken += [
            f"{name}={value}"
            for name, value in attrs
            if name.startswith("on")
            or (name in ("src", "href") and not (value or "").startswith(("data:", "#")))
        ]


def test_labels_are_text_and_nothing_is_fetched(page: Path) -> None:
    html = page.read_text()
    assert EVIL not in html
    seen = Outside()
    seen.feed(html)
    assert seen.taken == []
    # The content, the plotting library, the page's own, and two of a line that hide what is not drawn yet.
    assert (seen.tags["script"], seen.tags["img"]) == (5, 0)


def test_a_page_is_not_a_table(tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli, ["report", "--html", "x.html", "--to", "y"], standalone_mode=False)
    assert "leave out --to and --format" in str(ran.exception)


def test_a_page_that_cannot_be_written_is_said(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "page.html"
    (tmp_path / "nowhere").write_text("a file")
    words = ["report", "--out", str(page.parent), "--html", str(target), "--resamples", "100"]
    ran = CliRunner().invoke(cli, words, standalone_mode=False)
    assert str(ran.exception).startswith("--html ")


def test_of_a_store_that_is_half_there_the_rest_is_shown(page: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(page.parent / "cells", store / "cells")
    trainings = sorted(store.glob("cells/*"))
    (trainings[0] / "truth.safetensors").unlink()
    (trainings[1] / "detections.safetensors").write_bytes(b"half")
    (trainings[2] / "trained.json").unlink()
    for record in trainings[3].glob("*/record.json"):
        record.unlink()
    target = tmp_path / "page.html"
    words = ["report", "--out", str(store), "--html", str(target), "--resamples", "100"]
    ran = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    shown = sum(len(row["cells"]) for row in content_of(target)["rows"])
    assert shown == sum(len(list(training.glob("*/cell.json"))) for training in trainings[4:])
    for training in trainings[:4]:
        assert training.name in ran.stderr


def test_a_command_quotes_what_a_shell_would_read(tmp_path: Path) -> None:
    identity = {"model": "m; rm x", "data": "d", "seed": 3, "protocol": {"name": "demo"}}
    identity |= {"model_config": {"a": 1, "b": 2}, "data_config": {"c": None}}
    about = {"model": {"settings": {"a": 1, "b": 3}, "plugin": {"file": "my file.py"}}}
    made = command_of(Cell(Training(identity, {}, {}, {}, about), {"name": "own"}))
    assert made == (
        "objbench run --models 'm; rm x' --data d --protocol demo --seeds 3-3 -o 'm; rm x.b=2' --plugin 'my file.py'"
    )


# Errors


def boxes(*corners: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(corners).reshape(-1, 4)


def found(*corners: tuple[float, float, float, float], scores: list[float] | None = None) -> Detections:
    """Detections in one scene."""
    count = len(corners)
    return Detections(
        1,
        torch.zeros(count, dtype=torch.int64),
        boxes(*corners),
        torch.tensor(scores or [0.9] * count),
        torch.zeros(count, dtype=torch.int64),
    )


def truth(*corners: tuple[float, float, float, float]) -> GroundTruth:
    return GroundTruth.of([boxes(*corners)], [torch.zeros(len(corners), dtype=torch.int64)])


A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)
FAR = (40.0, 40.0, 50.0, 50.0)


def test_each_kind_of_error_costs_what_mending_it_wins() -> None:
    nothing = dict.fromkeys(errors.FIXES, 0.0)
    assert errors.gains(found(A, B), truth(A, B)) == nothing
    half = 51 / 101  # COCO's precision is taken at 101 recalls, of which 51 are 0 to .5
    assert errors.gains(found(A), truth(A, B)) == nothing | {"missed": pytest.approx(1 - half)}
    loose = (20.0, 0.0, 30.0, 4.0)  # IoU 0.4 with B
    assert errors.gains(found(A, loose, scores=[0.9, 0.8]), truth(A, B)) == nothing | {
        "loose box": pytest.approx(1 - half)
    }
    twice = (0.0, 0.0, 10.0, 9.0)
    assert errors.gains(found(A, twice, B, scores=[0.9, 0.8, 0.7]), truth(A, B))["double"] == pytest.approx(
        50 / 101 * (1 - 2 / 3)
    )
    assert errors.gains(found(FAR, A, scores=[0.9, 0.8]), truth(A))["on background"] == pytest.approx(0.5)


def test_nothing_found_is_all_missed() -> None:
    assert errors.gains(found(), truth(A, B)) == dict.fromkeys(errors.FIXES, 0.0) | {"missed": 1.0}


def test_parts_of_an_object_and_boxes_around_several() -> None:
    objects = truth(A, B)
    around = (0.0, 0.0, 30.0, 10.0)
    left, right = (0.0, 0.0, 4.0, 10.0), (6.0, 0.0, 10.0, 10.0)
    for detections, split, joined in (
        (found(around), [False], [True]),
        (found(left, right), [True, True], [False, False]),
        (found(left), [False], [False]),  # one part alone is a loose box
        (found(A, left, right), [False] * 3, [False] * 3),  # its object is found
        (found(FAR), [False], [False]),
    ):
        parts = errors.split_or_joined(detections, objects, verdicts(detections, objects))
        assert [part.tolist() for part in parts] == [split, joined]


def test_recall_by_bins_holds_both_ends() -> None:
    values = torch.tensor([1.0, 2.0, 3.0]).double().numpy()
    got = torch.tensor([True, False, True]).numpy()
    assert errors.recall_by(values, [1, 2, 3], got) == [1.0, 0.5]
    assert errors.recall_by(values, [1, 4, 9], got) == [pytest.approx(2 / 3), None]


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, that of the machine or Playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    here = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as running:
        try:
            started = running.chromium.launch(executable_path=here, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium to start: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page, open. In the end nothing was said on the console and nothing was asked for."""
    yield from open_tab(browser, page)


@pytest.fixture
def pair_tab(browser: Any, opened: Path) -> Iterator[Any]:
    """The page of the compared cells, open."""
    yield from open_tab(browser, opened)


def open_tab(browser: Any, page: Path) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(SLOW_MS)
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: said.append(request.url) if request.url[:5] != "data:" else None)
    opened.goto(page.as_uri())
    yield opened
    assert said == [page.as_uri()]
    assert opened.title() == "objbench report"  # EVIL did not run
    opened.close()


def models(tab: Any) -> list[str]:
    cells = tab.locator(".results tbody tr.ours th a").all_inner_texts()
    return ["good" if cell.startswith("good") else "evil" for cell in cells]


def sorted_by(tab: Any, heading: str) -> list[str]:
    tab.get_by_role("button", name=heading, exact=False).first.click()
    return models(tab)


def test_a_click_on_a_heading_sorts(tab: Any) -> None:
    assert sorted_by(tab, "Model")[0] == "evil"  # "<" before "g"
    assert tab.locator("th[aria-sort=ascending]").count() == 1
    assert sorted_by(tab, "Model")[-1] == "evil"
    assert sorted_by(tab, "AP (%")[-1] == "evil"  # a figure sorts from the highest down
    assert sorted_by(tab, "AP (%")[0] == "evil"


def test_layers_are_switched_and_scenes_put_in_order(tab: Any) -> None:
    tab.select_option("#set", label="squares, protocol demo")
    assert tab.locator("#grid .panel").count() == SCENES * 3
    tab.locator("#layers input").first.uncheck()  # the truth
    assert tab.locator("#grid .panel").count() == SCENES * 2
    tab.select_option("#view", "over")
    assert tab.locator("#grid .panel").count() == SCENES
    tab.select_option("#view", "side")
    worst = [o for o in tab.locator("#order option").all_inner_texts() if "script" in o]
    tab.select_option("#order", label=worst[0])
    assert tab.locator("#grid h4").first.inner_text() == "Scene 4"
    tab.select_option("#show", "missed")
    assert tab.locator("#grid .frame").count() == 3
    assert tab.locator("#grid .scene").count() == 3  # the others have none
    tab.select_option("#show", "false")
    assert tab.locator("#grid .frame").count() == 3  # each object that is missed left a box on background
    assert tab.locator("#said").inner_text() == "3 of 6 scenes are shown."


def test_two_cells_are_shown_where_they_differ(pair_tab: Any) -> None:
    tab = pair_tab
    titles = tab.locator("#grid h4").all_inner_texts()
    assert [title[:7] for title in titles] == ["Scene 4", "Scene 5", "Scene 6"]
    sides = [
        tab.evaluate(f"document.getElementById('{name}').selectedOptions[0].text")
        for name in ("first", "second")
    ]
    good = "A" if sides[0].startswith("good") else "B"
    counts = "0 in A, 1 in B" if good == "A" else "1 in A, 0 in B"
    assert titles[0] == f"Scene 4: only {good} has 1 right; false boxes: {counts}"
    said = tab.locator("#said").inner_text()
    assert f"they differ in 3. More objects are right in A in {3 * (good == 'A')}" in said
    assert tab.locator("#grid .panel").count() == 3 * 3  # the truth, A and B
    assert tab.locator("#pair").is_visible()
    assert tab.locator("#seed").is_disabled()
    tab.uncheck("#differ")
    assert tab.locator("#grid .scene").count() == SCENES
    tab.select_option("#second", "")
    assert not tab.locator("#pair").is_visible()
    assert tab.locator("#differ").is_disabled()


def test_keys_go_from_scene_to_scene(pair_tab: Any) -> None:
    def focused() -> str:
        return str(pair_tab.evaluate("document.activeElement.getAttribute('aria-label')"))

    pair_tab.locator("#grid svg").first.focus()
    pair_tab.keyboard.press("j")
    assert focused().startswith("Scene 5")
    pair_tab.keyboard.press("k")
    assert focused().startswith("Scene 4")


def test_a_box_says_what_it_is_to_pointer_and_keyboard(tab: Any) -> None:
    tab.select_option("#set", label="squares, protocol demo")
    tab.locator("#layers input").first.uncheck()
    tab.locator("#grid .frame").first.hover()
    tip = tab.locator("#tip")
    assert "score 0.90, IoU 1.00" in tip.inner_text()
    assert "cluster" in tip.inner_text()
    tab.keyboard.press("Escape")
    assert not tip.is_visible()
    tab.locator("#grid svg").first.focus()
    tab.keyboard.press("ArrowRight")
    assert "IoU 1.00" in tip.inner_text()


def test_charts_are_drawn_and_drawn_again(tab: Any) -> None:
    tab.select_option("#set", label="squares, protocol demo")
    assert tab.locator("#curves canvas").count() >= 3
    assert tab.locator("#terms canvas").count() == 2
    tab.select_option("#axis", "seconds")
    assert tab.locator("#terms canvas").count() == 2
    tab.emulate_media(color_scheme="dark")
    assert tab.locator("#terms canvas").count() == 2


def drawn(tab: Any, host: str) -> list[str]:
    """What the charts of a part say to those who cannot see them."""
    return [str(one.get_attribute("aria-label")) for one in tab.locator(f"#{host} .canvas").all()]


def test_a_curve_is_of_the_detector_and_not_of_what_replaces_its_clusters(tab: Any) -> None:
    tab.select_option("#set", label="rounds, protocol demo")
    assert tab.locator("#layers input").count() == 4  # the truth, good, good + kmeans, floor
    curves = drawn(tab, "curves")
    assert curves
    for said in curves:
        assert said.count("good [lr=0.5], seed") == 2
        assert "k-means" not in said


def test_cost_has_the_clusterer_and_what_trains_without_steps(tab: Any) -> None:
    tab.select_option("#set", label="rounds, protocol demo")
    (said,) = drawn(tab, "price")
    assert said.count("floor [lr=0.5], seed") == 2
    assert "k-means" not in said
    row = tab.locator("#cost tbody tr", has_text="k-means").inner_text().split("\t")
    assert row[1:3] == ["3", "7"]


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_moves_while_it_loads(browser: Any, page: Path, width: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 3000})  # its table ends above the fold
    tab.set_default_timeout(SLOW_MS)
    tab.add_init_script(
        """window.moved = [];
        new PerformanceObserver((list) => moved.push(...list.getEntries().map((one) => one.value)))
          .observe({ type: "layout-shift", buffered: true });"""
    )
    tab.goto(page.as_uri())
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert tab.evaluate("moved") == []
    tab.close()


def test_nothing_is_wider_than_a_phone(pair_tab: Any) -> None:
    tab = pair_tab
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_on_paper_nothing_is_cut(tab: Any) -> None:
    tab.set_viewport_size({"width": 718, "height": 1047})  # A4 without its margins
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 718
    assert not tab.locator("nav").is_visible()


def test_on_paper_charts_are_whole_and_dark_on_white(tab: Any) -> None:
    tab.emulate_media(color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    ink = """() => {
      const canvas = document.querySelector("#curves canvas");
      const labels = canvas.getContext("2d").getImageData(0, 0, 40, canvas.height).data; // of the axis, no line
      return Math.min(...labels.filter((_, i) => i % 4 === 0 && labels[i + 3] === 255));
    }"""
    assert tab.evaluate(ink) < 90
    tab.set_viewport_size({"width": 718, "height": 1047})
    tab.emulate_media(media="print", color_scheme="dark")
    cut = """() => [...document.querySelectorAll(".chart")].filter((chart) => {
      const [frame, canvas] = [chart, chart.querySelector("canvas")].map((one) => one.getBoundingClientRect());
      return canvas.right > frame.right + 1 || canvas.bottom > frame.bottom + 1;
    }).length"""
    assert tab.evaluate(cut) == 0


def contrast(a: list[float], b: list[float]) -> float:
    """WCAG 2's contrast of two colours, 0..255 each channel."""

    def luminance(rgb: list[float]) -> float:
        parts = [c / 255 for c in rgb]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(tab: Any, scheme: str) -> None:
    """WCAG AA: 4.5 to 1, for every piece of text that is shown."""
    tab.emulate_media(color_scheme=scheme)
    pairs = tab.evaluate(
        """() => {
          const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
          const ground = (node) => {
            for (; node; node = node.parentElement) {
              const found = numbers(getComputedStyle(node).backgroundColor);
              if (found.length < 4 || found[3] === 1) return found.slice(0, 3);
            }
          };
          const texts = "h1,h2,h3,h4,p,a,th,td,label,summary,button,dt,dd,figcaption,.under,.mark,.differs,select";
          return [...document.querySelectorAll(texts)]
            .filter((node) => node.offsetParent && node.textContent.trim() && !node.closest("#confusion"))
            .map((node) => [node.className, numbers(getComputedStyle(node).color).slice(0, 3), ground(node)]);
        }"""
    )
    assert len(pairs) > 50
    assert [name for name, ink, ground in pairs if contrast(ink, ground) < 4.5] == []
