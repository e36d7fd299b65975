"""The walk that makes one file of our modules, and what a minifier may leave out."""

import ast
import lzma
import zlib
from base64 import b64encode, b85encode
from pathlib import Path

import pytest

from gptpack.contest import bundle as bundles
from gptpack.contest.bundle import bundle
from gptpack.contest.imports import NETWORK, read_imports
from gptpack.contest.minify import dense, without_annotations
from gptpack.contest.script import make_script
from gptpack.errors import GptpackError

MODULES = {
    "first": '''
"""A module."""
import os
import json as j
from typing import TYPE_CHECKING
from gptpack.second import helper, Unused, CONSTANT as C

if TYPE_CHECKING:
    from gptpack.third import Never


class Base:
    """Says so."""

    field: int = 3

    def method(self, x: "Never") -> int:
        """Doc."""
        y: int = helper(x)
        return y + C


def entry(a: int = 1) -> str:
    def inner() -> None:
        """Only this."""
    from gptpack.third import late
    return late(Base, j.dumps(a))


def not_reached():
    return os.getcwd()
''',
    "second": """
import zlib
TABLE = {}
TABLE["effect"] = 1
CONSTANT = OTHER = 2


def helper(x):
    return _private(x)


def _private(x):
    return x


class Unused:
    z = zlib.crc32
""",
    "third": """
import gptpack.fourth


def late(a, b):
    return gptpack.fourth.f(b)
""",
    "fourth": "def f(b):\n    return b\n\n\ndef g():\n    pass\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(bundles, "ROOT", tmp_path)
    return tmp_path


def sources(found):
    return {m.name.removeprefix("gptpack."): dense(list(m.statements())) for m in found.modules}


def test_what_is_reached_is_kept_and_nothing_else(package):
    found = sources(bundle("gptpack.first", "entry"))
    assert set(found) == {"first", "second", "third", "fourth"}
    assert "not_reached" not in found["first"]
    assert "import os" not in found["first"]
    assert "import json as j" in found["first"]
    assert "helper, CONSTANT as C" in found["first"]
    assert "Unused" not in found["second"]
    assert "import zlib" not in found["second"]
    assert "_private" in found["second"]
    assert "TABLE['effect'] = 1" in found["second"]
    assert "CONSTANT = OTHER = 2" in found["second"]
    # a module that is imported whole keeps all that it defines
    assert "def g" in found["fourth"]


def test_modules_can_be_left_out(package):
    found = bundle("gptpack.first", "entry", without=["gptpack.third"])
    assert {module.name for module in found.modules} == {"gptpack.first", "gptpack.second"}


def test_a_name_that_is_not_there_is_an_error(package):
    (package / "second.py").write_text("CONSTANT = 1\n")
    with pytest.raises(GptpackError, match=r"gptpack\.second has no helper"):
        bundle("gptpack.first", "entry")
    with pytest.raises(GptpackError, match="source is not there"):
        bundle("gptpack.nosuch", "entry")


def test_annotations_and_docstrings_go_but_fields_stay(package):
    found = bundle("gptpack.first", "entry", transform=without_annotations)
    text = sources(found)["first"]
    assert "field: int = 3" in text
    assert "-> int" not in text
    assert '"""' not in text
    assert "Doc" not in text
    assert "y = helper(x)" in text
    assert "def inner():\n  pass\n" in text


def test_dense_source_is_the_same_program():
    source = "def f(x):\n    if x:\n        return '''a\n    b'''\n    return f'{x}\\n'\n"
    tree = ast.parse(source)
    assert ast.dump(ast.parse(dense(tree.body))) == ast.dump(tree)


@pytest.fixture(scope="module")
def coded():
    """The script for files with range-coded sections."""
    return make_script({"zlib", "range", "zstd"}, artifact="m.gptpack")


def test_the_modules_of_the_script_are_all_without_what_only_packing_needs(coded):
    script = make_script({"zlib"}, artifact="m.gptpack")
    for name in ("packing.", "quant.gptq'", "artifact.writer'", "cli.", "codec.range'"):
        assert f"SOURCES['gptpack.{name}" not in script.readable
    assert script.packages == ("numpy>=2.0", "sentencepiece>=0.2", "torch>=2.11")
    assert "SOURCES['gptpack.codec.range']" in coded.readable
    assert {"numba>=0.61", "zstandard>=0.22"} <= set(coded.packages)
    assert len(script.small) < len(coded.small) < len(coded.readable)


def test_the_script_is_the_same_each_time(coded):
    assert make_script({"zlib", "range", "zstd"}, artifact="m.gptpack") == coded


def packed(source: str) -> list[str]:
    """`source` in each of the wrappers that the contest's scripts come in."""
    data = source.encode()
    xz, deflated = b85encode(lzma.compress(data)), b64encode(zlib.compress(data)).decode()
    return [
        f"import lzma, base64\nexec(lzma.decompress(base64.b85decode({xz!r})))",
        f"import zlib as z, base64 as b\nexec(z.decompress(b.b64decode({deflated!r})))",
        f"exec({source!r})",
    ]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_imports_are_seen_through_wrappers(depth):
    noise = "".join(str(i * i) for i in range(300))
    texts = [f"import requests.sessions\nx = '{noise}'\n"]
    for _ in range(depth):
        texts = [wrapped for text in texts for wrapped in packed(text)]
    for text in texts:
        assert read_imports(text).reaching(NETWORK) >= {"requests.sessions"}, text[:200]


def test_other_ways_to_import_are_seen():
    source = "import importlib\nimportlib.import_module('socket')\n__import__('http.client')\n"
    source += "from urllib import request\nimport torch.nn, os.path, numpy\n"
    found = read_imports(source)
    assert found.reaching(NETWORK) == {"socket", "http.client", "urllib", "urllib.request"}
    assert found.third_party == {"torch", "numpy"}


def test_our_own_script_is_read_through(coded):
    for text in (coded.small, coded.readable):
        found = read_imports(text)
        assert "gptpack.jobs.load" in found.names
        assert found.third_party >= {"torch", "numpy", "sentencepiece"}
        assert "gptpack" not in found.third_party
        assert not found.reaching(NETWORK)


def test_the_root_of_the_walk_is_the_package():
    assert (bundles.ROOT / "contest" / "bundle.py").samefile(Path(bundles.__file__))
