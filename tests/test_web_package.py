"""What is built or said twice in web/ is the same both times."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gptpack.jobs.web import PAGE
from gptpack.version import VERSION

WEB = Path(__file__).parent.parent / "web"
COMPILER = WEB / "node_modules" / ".bin" / "asc"
PACKAGE = json.loads((WEB / "package.json").read_text(encoding="utf-8"))


@pytest.mark.skipif(not COMPILER.exists(), reason="needs AssemblyScript; npm ci --prefix web")
def test_the_module_is_what_its_source_compiles_to(tmp_path):
    command = shlex.split(PACKAGE["scripts"]["build"])
    command[0], built = str(COMPILER), tmp_path / "gptpack.wasm"
    command[command.index("--outFile") + 1] = str(built)
    subprocess.run(command, cwd=WEB, check=True, capture_output=True)
    assert built.read_bytes() == (WEB / "site" / "gptpack.wasm").read_bytes()


def test_the_npm_package_is_of_this_version_and_needs_nothing_to_run():
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    assert PACKAGE["version"] == lock["version"] == VERSION
    assert "dependencies" not in PACKAGE
    (compiler,) = PACKAGE["devDependencies"].values()
    assert re.fullmatch(r"[0-9.]+", compiler), "an exact version, so that the module is one"
    assert "https://registry" not in json.dumps(lock)


def test_all_that_the_package_exports_has_a_type():
    source, types = (
        (WEB / "site" / name).read_text(encoding="utf-8") for name in ("index.js", "index.d.ts")
    )
    exported = {
        name.strip() for group in re.findall(r"\{(.*?)\}", source) for name in group.split(",")
    }
    assert exported == set(re.findall(r"^export (?:class|function) (\w+)", types, re.M))


def test_each_file_of_the_page_is_one_that_a_site_is_made_of():
    assert {file.suffix for file in (WEB / "site").iterdir()} == {*PAGE, ".ts"}
