"""`objbench new`: what it writes works as it is, and nothing is overwritten."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from running import objbench

KINDS = {"model": "my-det", "data": "my-scenes", "metric": "my_metric", "clusterer": "my-groups"}
ROOT = Path(__file__).parents[2]


def python_with(folder: Path, *wheels: Path) -> str:
    """A fresh virtual environment that sees what this one has, with these packages installed besides."""
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    site = next(folder.glob("lib/python*/site-packages"))
    outer = dict.fromkeys([sysconfig.get_paths()["purelib"], str(Path(pytest.__file__).parents[1])])
    lines = [f"import site; site.addsitedir({packages!r})\n" for packages in outer]
    (site / "outer.pth").write_text("".join(lines))
    words = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
    ]
    for wheel in wheels:
        subprocess.run([*words, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True)
    return python


def run_in(python: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`objbench WORDS` in that environment."""
    code = "import sys; sys.path.remove(''); from objbench.commands import main; main()"
    return subprocess.run([python, "-c", code, *words], capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_registers_and_passes_the_kit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = KINDS[kind]
    module = name.replace("-", "_")
    ran = objbench("new", kind, name, "--to", str(tmp_path / "here"))
    assert (ran.code, ran.err) == (0, "")
    written = {str(p.relative_to(tmp_path / "here")) for p in (tmp_path / "here").rglob("*") if p.is_file()}
    assert {"pyproject.toml", "README.md", f"src/{module}/__init__.py", f"tests/test_{module}.py"} < written
    text = "".join((tmp_path / "here" / file).read_text() for file in written)
    assert not re.search("new.plugin", text, re.IGNORECASE)
    info = tmp_path / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[objbench]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "here" / "src"))
    monkeypatch.syspath_prepend(str(tmp_path))
    checked = objbench("check", name)
    assert checked.code == 0, checked.out
    sys.modules.pop(module, None)  # the docs' metric in another test has the same name
    assert f"passed  registration: {module}" in checked.out
    assert ", 0 failed, " in checked.out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My-Det", "cannot name a plugin"),
        ("1det", "cannot name a plugin"),
        ("det/../x", "cannot name a plugin"),
        ("class", "cannot name a plugin"),
        ("json", "a Python module named 'json' is installed already"),
        ("count_error", "there is a plugin named 'count_error' already"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(name: str, says: str, tmp_path: Path) -> None:
    ran = objbench("new", "model", name, "--to", str(tmp_path / "x"))
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert objbench("new", "metric", "mine", "--to", str(tmp_path / "x")).code == 0  # an empty folder is fine
    before = (tmp_path / "x" / "README.md").read_bytes()
    ran = objbench("new", "model", "mine", "--to", str(tmp_path / "x"))
    assert ran.code == 2
    assert "is there already and not an empty folder" in ran.err
    assert (tmp_path / "x" / "README.md").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
def test_the_example_installs_as_a_wheel_into_a_fresh_environment_and_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "spots", tmp_path / "spots")
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, *build, "-w", str(tmp_path), str(tmp_path / "spots")],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    python = python_with(tmp_path / "venv", wheel)
    listed = run_in(python, "plugins", cwd=tmp_path)
    assert "spots           objbench-spots 0.1.0  (objbench_spots)" in listed.stdout
    ran = run_in(
        python, "run", "--models", "spots", "--data", "multimnist", "--out", "runs",
        "-o", "spots.steps=40", "-o", "spots.lr=0.01", "-o", "gmm.restarts=1", cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    ap50 = float(re.search(r"ap50 (\S+)", ran.stdout)[1])
    assert ap50 > 0.9
    table = run_in(python, "report", "--out", "runs", "--format", "md", cwd=tmp_path)
    assert "spots + GMM" in table.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("model", 15), ("data", 8), ("metric", 7), ("clusterer", 13)])
def test_what_is_new_installs_and_its_own_tests_pass(kind: str, least: int, tmp_path: Path) -> None:
    """As its author would: installed with the extra that its README names, then `pytest` in its folder."""
    folder = tmp_path / "mine"
    assert objbench("new", kind, "mine", "--to", str(folder)).code == 0
    assert "pip install -e '.[test]'" in (folder / "README.md").read_text()
    python = python_with(tmp_path / "venv", folder)
    code = "from importlib.metadata import requires; print(requires('mine'))"
    needs = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path).stdout
    assert re.search(r"'pytest>=[\d.]+; extra == .test.'", needs.replace('"', "'")), needs
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"], capture_output=True, text=True, cwd=folder
    )
    assert ran.returncode == 0, ran.stdout
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) >= least


def test_every_package_of_the_harness_is_in_the_wheel() -> None:
    told = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    for folder, name in (("objbench", "objbench"), ("plugins", "objbench_plugins")):
        inits = (
            path.parent.relative_to(ROOT / folder).parts for path in (ROOT / folder).rglob("__init__.py")
        )
        assert {".".join((name, *parts)) for parts in inits if "templates" not in parts} <= told
