"""What is installed: the wheel's contents, and that an editable install runs.

Both work on a copy of the sources, so that nothing is built in the checkout.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = (
    *("gptpack", "kernels", "recipes", "web"),
    *("setup.cfg", "pyproject.toml", "README.md", "LICENSE"),
)
DOORS = ("train.py", "pack.py", "eval.py")


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; its surroundings know no PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what a build reads, the links kept as links."""
    folder = tmp_path_factory.mktemp("sources")
    for name in (*SOURCES, *DOORS):
        path = ROOT / name
        if path.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "node_modules")
            shutil.copytree(path, folder / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(path, folder / name)
    return folder


def bare_environment(folder: Path) -> Path:
    """The python of a new environment that sees this one's packages, but not gptpack."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder.joinpath(*Path(sysconfig.get_path("purelib")).relative_to(sys.prefix).parts)
    site.joinpath("borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin" / "python"


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
BUILD = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", *BUILD, "--wheel-dir", folder, ".", cwd=sources)
    (path,) = folder.glob("*.whl")
    return path


def relative(sources: Path, pattern: str) -> set[str]:
    return {path.relative_to(sources).as_posix() for path in sources.glob(pattern)}


def test_the_links_are_relative_and_lead_to_the_folders():
    for name, folder in {"kernels": "kernels", "recipes": "recipes", "site": "web/site"}.items():
        link = ROOT / "gptpack" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{folder}"


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_all_that_is_linked_into_it(wheel, sources):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "gptpack/py.typed" in names
    assert {f"gptpack/{name}" for name in relative(sources, "recipes/*.toml")} <= names
    assert {f"gptpack/{name}" for name in relative(sources, "kernels/*.py")} <= names
    page = {f"gptpack/site/{file.name}" for file in (sources / "web" / "site").iterdir()}
    assert page - names == {"gptpack/site/index.d.ts"}
    assert relative(sources, "gptpack/**/*.py") <= names


@pytest.mark.slow
def test_a_wheel_holds_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert all(top == "gptpack" or top.endswith(".dist-info") for top in tops)
    assert "gptpack/kernels/__init__.py" not in names
    assert not [name for name in names if name.endswith((".pt", ".pyc", ".bin"))]


@pytest.mark.slow
def test_an_installed_wheel_runs_and_finds_its_recipes(wheel, tmp_path):
    python = bare_environment(tmp_path / "venv")
    run(*PIP, "--python", python, "install", *BUILD, wheel, cwd=tmp_path)
    code = (
        "import gptpack.training.recipe as r\n"
        "print(r.find_recipe('demo'), *r.recipe_names(), sep='\\n')"
    )
    found, *names = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(found).is_relative_to(tmp_path / "venv")
    assert {"baseline", "demo", "seq4096", "tiny"} <= set(names)
    assert "gptpack" in run(python, "-m", "gptpack", "--version", cwd=tmp_path)
    assert "gptpack" in run(python.parent / "gptpack", "--version", cwd=tmp_path)


@pytest.mark.slow
def test_an_editable_install_runs_the_sources(sources, tmp_path):
    python = bare_environment(tmp_path / "venv")
    run(*PIP, "--python", python, "install", *BUILD, "--editable", sources, cwd=tmp_path)
    code = "import gptpack.errors as e, gptpack.training.recipe as r;print(e.__file__, r.FOLDER)"
    for path in run(python, "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(sources)
    kernels = sorted(path.stem for path in (sources / "kernels").glob("*.py"))
    code = (
        "import importlib.util as u\n"
        f"for name in {kernels!r}: assert u.find_spec(f'gptpack.kernels.{{name}}'), name"
    )
    run(python, "-c", code, cwd=tmp_path)
    assert "gptpack" in run(python.parent / "gptpack", "--version", cwd=tmp_path)


@pytest.mark.slow
def test_the_doors_run_from_a_checkout_that_is_not_installed(sources, tmp_path):
    python = bare_environment(tmp_path / "venv")
    for door in DOORS:
        help_text = run(python, sources / door, "--help", cwd=tmp_path)
        assert f"Usage: gptpack {door.removesuffix('.py')}" in help_text


def test_every_version_in_the_constraints_is_exact():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(pin.count("==") == 1 for pin in pins)
    assert "+" not in "".join(pins)
