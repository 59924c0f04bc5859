"""A plugin may raise, exit, print, hang, clash or be nonsense: every other command goes on working, and
`objbench plugins` says what happened and to which file."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from objbench import __version__, plugins
from objbench.cells.protocols import PROTOCOLS
from objbench.guarded import PluginFailed, calling
from objbench.plugins import Registry, load_plugins
from running import TOY, objbench, rows_of

BROKEN = Path(__file__).with_name("broken_plugins")
SUBJECTS = {"detectors", "sources", "measures", "heavy", "groupers"}  # of the conformance kit's tests
BAD_SYNTAX = "def objbench_models(:\n"
ALONE = {"deaf"}  # ends the program that loads it
NAMES = sorted(p.stem for p in BROKEN.glob("*.py") if p.stem not in SUBJECTS | ALONE) + ["bad_syntax"]
EXPECTED = {
    "raises": "RuntimeError: the plugin broke over two lines (raises.py, line 3)",
    "exits": "SystemExit: 3 (exits.py, line 5)",
    "prints": "",
    "hangs": "TooSlow: took longer than 0.3 s to import (hangs.py, line 5)",
    "catches": "TooSlow: took longer than 0.3 s to import",
    "clashes": "",
    "twins": "",
    "rivals": "",
    "misnames": "no hook named 'objbench_modles'; did you mean 'objbench_models'? (hooks: "
    "objbench_clusterers, objbench_data, objbench_metrics, objbench_models, objbench_published)",
    "returns_text": "TypeError: objbench_metrics must return MetricSpec objects, got 'my-metric'",
    "publishes_text": "TypeError: objbench_published must return Published objects, got '97 %'",
    "steals": f"ValueError: a metric named 'count_error' exists already (from objbench {__version__}); rename one",
    "not_there": "ModuleNotFoundError: No module named 'not_there'",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All of the broken plugins are installed, each as a distribution of its own, as pip would have it."""
    for name in (*NAMES, "not_there"):
        install(name, tmp_path)
    (tmp_path / "bad_syntax.py").write_text(BAD_SYNTAX)
    monkeypatch.syspath_prepend(str(BROKEN))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "LOAD_LIMIT_S", 0.3)
    monkeypatch.setattr(plugins, "GRACE_S", 0.05)
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def install(name: str, place: Path) -> None:
    """Tells Python of a distribution with that plugin, as pip does."""
    info = place / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[objbench]\n{name} = {name}\n")


def errors(registry: Registry) -> dict[str, str]:
    return {p.name: p.error for p in registry.plugins if p.source == f"{p.name} 1.0"}


@pytest.mark.usefixtures("installed")
def test_each_broken_plugin_is_recorded_and_none_breaks_another() -> None:
    began = time.monotonic()
    found = errors(load_plugins())
    assert time.monotonic() - began < 5
    assert found.pop("bad_syntax").startswith("SyntaxError: ")
    assert found == EXPECTED


@pytest.mark.usefixtures("installed")
def test_our_own_are_as_they_were() -> None:
    broken = load_plugins()
    assert {"prints", "twin-model"} == broken.models.keys() - own().models.keys()
    assert {"twin-data"} == broken.data.keys() - own().data.keys()
    assert broken.metrics == own().metrics


def own() -> Registry:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OBJBENCH_PLUGINS", "")
        return load_plugins()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "words",
    [["data", "show", "--help"], ["info", "count_error"], ["info", "pca-gmm"], ["check", "count_error"]],
    ids=" ".join,
)
def test_every_other_command_goes_on_working(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    among_broken = objbench(*words)
    monkeypatch.setenv("OBJBENCH_PLUGINS", "")
    alone = objbench(*words)
    outs = [re.sub(r"cost: .*", "cost", ran.out) for ran in (among_broken, alone)]  # a time is never the same
    assert among_broken.code == 0
    assert outs[0] == outs[1], "nothing that a plugin prints is data"
    assert among_broken.out


@pytest.mark.usefixtures("installed")
def test_what_a_plugin_prints_is_no_data() -> None:
    ran = objbench("list", "models", "--json")
    assert "prints" in {row["name"] for row in json.loads(ran.out)}


@pytest.mark.usefixtures("installed")
def test_objbench_plugins_says_what_happened_and_where_from() -> None:
    ran = objbench("plugins")
    assert ran.code == 0
    lines = ran.out.splitlines()
    for name, error in EXPECTED.items():
        (i,) = [i for i, line in enumerate(lines) if line.startswith(f"{name:<14}  {name} 1.0  ({name})")]
        assert not error or lines[i + 1].strip() == f"NOT LOADED: {error}"
    assert any(line.startswith("prints") and "CLASH: 2 plugins register this model" in line for line in lines)
    for kind, name in (("model", "twin-model"), ("data set", "twin-data"), ("metric", "twin-metric")):
        clash = f"{name:<14}  CLASH: 2 plugins register this {kind}: rivals 1.0, twins 1.0"
        assert clash in lines
    rows = {row["name"]: row for row in json.loads(objbench("plugins", "--json").out)}
    assert rows["hangs"]["error"] == EXPECTED["hangs"]


@pytest.mark.usefixtures("installed")
def test_a_name_that_two_plugins_have_is_refused_only_when_it_is_used() -> None:
    ran = objbench("info", "prints")
    assert ran.code == 2
    assert "2 plugins register a model named 'prints': " in ran.err
    assert "clashes 1.0" in ran.err


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["info", "twin-model"], "model"),
        (["check", "twin-data"], "data set"),
        (["info", "twin-metric"], "metric"),
        (["run", "--models", "twin-model", "--data", "multimnist", "--plan"], "model"),
        (["run", "--models", "pca-gmm", "--data", "twin-data", "--plan"], "data set"),
    ],
)
def test_of_two_with_one_name_neither_is_taken(words: list[str], kind: str) -> None:
    ran = objbench(*words)
    assert ran.code == 2
    assert f"2 plugins register a {kind} named 'twin-" in ran.err
    assert "rivals 1.0, twins 1.0; remove one, or choose with OBJBENCH_PLUGINS" in ran.err


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("kind", "name"), [("models", "twin-model"), ("data", "twin-data"), ("metrics", "twin-metric")]
)
def test_a_name_that_two_plugins_claim_is_marked_in_the_list(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = objbench("list", kind).out.splitlines()
    (line,) = [line for line in listed if line.startswith(f"{name} ")]
    assert line.endswith("CLASH: 2 plugins register it: rivals 1.0, twins 1.0")
    rows = {row["name"]: row for row in json.loads(objbench("list", kind, "--json").out)}
    assert rows[name]["claimed_by"] == ["rivals 1.0", "twins 1.0"]
    monkeypatch.setenv("OBJBENCH_PLUGINS", "")
    ours = json.loads(objbench("list", kind, "--json").out)
    assert ours
    assert all(row["claimed_by"] == [] and rows[row["name"]] == row for row in ours)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("models", "clusterers") for name in sorted(getattr(own(), kind))],
)
def test_our_models_and_clusterers_say_what_they_are(kind: str, name: str) -> None:
    """Their paper, code and licence, what differs from the paper under each protocol, what they know beforehand."""
    spec = getattr(own(), kind)[name]
    for part in ("paper", "code", "licence", "prior_knowledge"):
        assert getattr(spec, part), f"{name} says nothing of its {part}"
    for protocol in PROTOCOLS:
        assert spec.differs_under(protocol), f"{name} does not say what differs under {protocol}"
    assert set(spec.differs) <= {"*", *PROTOCOLS}
    said = "".join(objbench("info", name).out.split())  # lines may break after any hyphen
    for words in (spec.paper, spec.code, spec.licence, spec.prior_knowledge, *spec.differs.values()):
        assert "".join(words.split()) in said


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_metrics_of_one_name_are_left_out_of_figures_and_said(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    ran = objbench(
        "run", "--models", "toy", "--data", "squares", "--plugin", TOY, "--out", str(out), "--json"
    )
    warning = "warning: metric 'twin-metric' is left out: 2 plugins register it (rivals 1.0, twins 1.0)"
    assert warning in ran.err
    (row,) = rows_of(ran)
    assert row["status"] == "done"
    assert row["metrics"]["ap50"] >= 0
    report = objbench("report", "--no-intervals", "--out", str(out), "--plugin", TOY)
    assert (report.code, "Twin" in report.out) == (0, False)
    assert warning in report.err


def test_a_plugin_that_is_deaf_to_all_ends_the_program_in_one_line(tmp_path: Path) -> None:
    install("deaf", tmp_path)
    program = "import objbench.plugins as p; p.LOAD_LIMIT_S = p.GRACE_S = 0.1; p.load_plugins()"
    path = os.pathsep.join([str(tmp_path), str(BROKEN), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("objbench: the plugin 'deaf' of deaf 1.0 does not end its import; remove it")
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.usefixtures("installed")
def test_third_parties_are_left_out_or_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJBENCH_PLUGINS", "")
    assert errors(load_plugins()) == {}
    assert load_plugins().models
    monkeypatch.setenv("OBJBENCH_PLUGINS", "Prints, raises, not-there, prnits")
    assert errors(load_plugins()) == {n: EXPECTED[n] for n in ("prints", "raises", "not_there")}
    lines = objbench("plugins").out.splitlines()
    unknown = lines.index("prnits          OBJBENCH_PLUGINS")
    assert lines[unknown + 1].strip() == "NOT LOADED: no such plugin or package is installed"


@pytest.mark.usefixtures("installed")
def test_a_name_that_is_not_there_hints_at_what_did_not_load() -> None:
    ran = objbench("info", "prnits")
    assert "did you mean 'prints'?" in ran.err
    sys.modules.pop("catches")  # imported at last, after it was given up
    ran = objbench("run", "--models", "raises", "--data", "multimnist", "--plan")
    assert ran.code == 2
    broken = len([error for error in EXPECTED.values() if error]) + 1  # and bad_syntax
    assert (
        f"a plugin in a file needs --plugin FILE; {broken} did not load, objbench plugins says why" in ran.err
    )


@pytest.mark.usefixtures("installed")
def test_what_every_command_waited_for_is_said() -> None:
    (line,) = [line for line in objbench("list", "models").err.splitlines() if "'hangs'" in line]
    assert line == f"objbench: the plugin 'hangs' of hangs 1.0 is left out: {EXPECTED['hangs']}"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bad_syntax", "SyntaxError: "),
        ("raises", "RuntimeError: the plugin broke over two lines"),
        ("exits", "SystemExit: 3"),
        ("misnames", "no hook named 'objbench_modles'; did you mean 'objbench_models'?"),
        ("hangs", "took longer than 0.3 s to import"),
    ],
)
def test_a_broken_file_that_the_user_names_is_one_line(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "FILE_LIMIT_S", 0.3)
    file = BROKEN / f"{name}.py"
    if name == "bad_syntax":
        file = tmp_path / "bad_syntax.py"
        file.write_text(BAD_SYNTAX)
    ran = objbench("list", "models", "--plugin", str(file))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"objbench: --plugin {file}: ")
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1
    sys.modules.pop(name, None)


def test_a_file_that_is_not_there_or_is_no_plugin(tmp_path: Path) -> None:
    assert "there is no such file" in objbench("plugins", "--plugin", str(tmp_path / "none.py")).err
    (tmp_path / "json.py").write_text("")
    ran = objbench("plugins", "--plugin", str(tmp_path / "json.py"))
    assert "a module named 'json' already exists; rename the file" in ran.err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my.plugin.py", "Python cannot import a module named 'my.plugin'; rename the file, to my_plugin.py say"),
        ("a,b.py", "Python cannot import a module named 'a,b'; rename the file, to a_b.py say"),
        ("my-detector.py", "Python cannot import a module named 'my-detector'; rename the file, to my_detector.py say"),
        ("2nd.py", "Python cannot import a module named '2nd'; rename the file, to _2nd.py say"),
        ("class.py", "Python cannot import a module named 'class'; rename the file, to class_.py say"),
        ("__init__.py", "Python cannot import a module named '__init__'; rename the file, to plugin.py say"),
        ("click.py", "a module named 'click' already exists; rename the file"),
        ("antigravity.py", "a module named 'antigravity' already exists; rename the file"),
        ("detector.txt", "not a Python file; its name must end in .py"),
        ("folder", "that is a folder; give the file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_under_its_name_is_one_line(
    name: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.mkdir() if name == "folder" else file.write_text("")
    ran = objbench("list", "models", "--plugin", str(file))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"objbench: --plugin {shlex.quote(str(file))}: {says}\n"


def test_a_file_given_twice_is_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(TOY)
    ran = objbench("list", "models", "--plugin", TOY, "--plugin", os.path.relpath(TOY),
                   "--plugin", str(tmp_path / "link.py"))  # fmt: skip
    once = objbench("list", "models", "--plugin", TOY)
    assert (ran.code, ran.out, ran.err) == (0, once.out, "")


@pytest.mark.usefixtures("installed")
def test_a_file_that_is_installed_too_is_loaded_once() -> None:
    ran = objbench("list", "models", "--plugin", str(BROKEN / "prints.py"))
    assert ran.code == 0, ran.err
    assert sum(line.startswith("prints ") for line in ran.out.splitlines()) == 1


@pytest.mark.parametrize("name", ["a.b", "a,b", "a=b", "a b", ""])
def test_a_name_that_the_command_line_cannot_write_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "odd_name.py"
    file.write_text(
        "from objbench import ModelSpec, hookimpl\n"
        f"objbench_models = hookimpl(lambda: [ModelSpec({name!r}, '', 'odd_name:M')])\n"
    )
    ran = objbench("list", "models", "--plugin", str(file))
    sys.modules.pop("odd_name")
    assert ran.code == 2
    assert f"a model cannot be named '{name}': a name holds no dots, commas, spaces, = or +" in ran.err


BESIDE = {
    "helper_beside.py": "class Item:\n    def __call__(self): return 'of the helper'\n",
    "json.py": "raise ImportError('this file beside a plugin must not be taken for json')\n",
    "click.py": "raise ImportError('nor for click, which is installed')\n",
    "starts_others.py": """
import multiprocessing
import helper_beside
from objbench import ModelSpec, hookimpl

objbench_models = hookimpl(lambda: [ModelSpec('m', '', 'starts_others:Mine')])

class Mine(helper_beside.Item):
    def __call__(self):
        import click, json
        return 'mine, ' + super().__call__()

def work(queue, item, method):
    "In a process of its own, and, where there is a method, in one that this starts."
    if method is None:
        queue.put(item())
    else:
        start(multiprocessing.get_context(method), work, queue, item, None)

def start(context, target, *words):
    process = context.Process(target=target, args=words)
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode
""",
}


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_a_file_starts_can_import_it_and_what_lies_beside_it(
    method: str, tmp_path: Path
) -> None:
    for name, text in BESIDE.items():
        (tmp_path / name).write_text(text)
    program = f"""
import multiprocessing, objbench.plugins
if __name__ == "__main__":
    objbench.plugins.load_plugins(({str(tmp_path / "starts_others.py")!r},))
    import starts_others
    context = multiprocessing.get_context({method!r})
    queue = context.Queue()
    starts_others.start(context, starts_others.work, queue, starts_others.Mine(), "spawn")
    print(queue.get(timeout=30))
"""
    (tmp_path / "elsewhere").mkdir()
    main = (
        tmp_path / "elsewhere" / "main.py"
    )  # which the processes import too, as they do objbench.run.worker
    main.write_text(program)
    ran = subprocess.run([sys.executable, "-P", str(main)], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "mine, of the helper\n"), ran.stderr


LOADS_BY_WORKERS = """
import torch
from toy_plugin import Toy
from helper_beside import Item
from objbench import ModelSpec, hookimpl
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return torch.tensor(float(len(Item()())))

class Loads(Toy):
    def training_step(self, images, step):
        if step == 0:
            loader = DataLoader(Numbers(), num_workers=1, multiprocessing_context="spawn")
            assert [float(x) for x in loader] == [13.0] * 4
        return super().training_step(images, step)

objbench_models = hookimpl(lambda: [ModelSpec("loads", "", "loads_by_workers:Loads")])
"""


@pytest.mark.slow
def test_a_cell_of_a_file_loads_data_by_spawned_workers(tmp_path: Path) -> None:
    (tmp_path / "helper_beside.py").write_text(BESIDE["helper_beside.py"])
    file = tmp_path / "loads_by_workers.py"
    file.write_text(LOADS_BY_WORKERS)
    ran = objbench("run", "--models", "loads", "--data", "squares", "--plugin", TOY, "--plugin", str(file),
                   "-o", "loads.steps=3", "--out", str(tmp_path / "runs"), "--json")  # fmt: skip
    for name in ("loads_by_workers", "helper_beside"):
        sys.modules.pop(name)
    (row,) = rows_of(ran)
    assert (row["status"], row["error"]) == ("done", "")


def test_a_file_may_not_take_a_name_that_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "takes_a_name.py"
    taken = next(iter(own().metrics))
    file.write_text(
        "from objbench import MetricSpec, hookimpl\n"
        f"objbench_metrics = hookimpl(lambda: [MetricSpec({taken!r}, 'mine', 'takes_a_name:f')])\n"
    )
    ran = objbench("list", "metrics", "--plugin", str(file))
    assert ran.code == 2
    assert f"a metric named '{taken}' exists already (from objbench " in ran.err
    sys.modules.pop("takes_a_name")


@pytest.mark.slow
def test_a_model_whose_class_does_not_load_is_reported_in_one_line() -> None:
    ran = objbench("run", "--models", "prints", "--data", "squares", "--plugin", str(BROKEN / "prints.py"),
                   "--plugin", str(Path(__file__).with_name("toy_plugin.py")), "--plan")  # fmt: skip
    assert ran.code == 1
    assert "prints on squares, seed 0: failed: 'prints' failed in its module: AttributeError: " in ran.err
    sys.modules.pop("prints", None)


def test_environment_variables_that_a_plugin_changes_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "before")
    monkeypatch.setenv("GONE", "before")
    monkeypatch.delenv("NEW", raising=False)

    def construct() -> None:
        with calling("'moody'", "its constructor"):
            os.environ.update({"THERE": "after", "NEW": "1"})
            del os.environ["GONE"]
            raise ValueError

    with pytest.raises(PluginFailed):
        construct()
    assert (os.environ["THERE"], os.environ["GONE"], "NEW" in os.environ) == ("before", "before", False)
