"""The demo's text: complete, in order, harmless to gather."""

import hashlib

import pytest

from gptpack.errors import DataError
from gptpack.jobs.demo_text import SEPARATOR, docstrings, documents, topics, write_text

MODULE = b'''"""About the module."""
raise SystemExit("must not run")
class A:
    """About A."""
    def f(self):
        """About f."""
        def g():
            "About g."
    async def h(self):
        """About
        h."""
def undocumented(): return """not a docstring"""
'''


def test_docstrings_come_in_source_order_and_nothing_runs():
    assert list(docstrings(MODULE)) == [
        "About the module.",
        "About A.",
        "About f.",
        "About g.",
        "About\nh.",
    ]


def test_what_does_not_parse_gives_nothing():
    assert list(docstrings(b"def (:")) == []
    assert list(docstrings(b"\x00")) == []


def test_topics_are_sorted_by_name():
    source = b"topics = {'b': 'second' ' topic', 'a': 'first\\x1etopic\\n'}\n"
    assert list(topics(source)) == ["firsttopic", "second topic"]


def test_documents_are_sorted_and_leave_out_tests_and_installed_packages(tmp_path):
    for name in ("b.py", "a/z.py", "a/test/t.py", "site-packages/s.py", "tests/u.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f'"""{name}"""')
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'if': 'The if statement'}")
    assert list(documents(tmp_path)) == ["The if statement", "a/z.py", "b.py"]


def test_a_folder_named_like_a_skipped_one_further_up_does_not_matter(tmp_path):
    folder = tmp_path / "test" / "lib"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text('"""A."""')
    assert list(documents(folder)) == ["A."]


def test_documents_are_split_by_the_separator_and_only_by_it(tmp_path):
    (tmp_path / "a.py").write_text('"""One\\x1etwo \\ud800."""')
    (tmp_path / "b.py").write_text('"""Three."""')
    size = write_text(tmp_path / "out.txt", folder=tmp_path)
    written = (tmp_path / "out.txt").read_bytes()
    assert size == len(written)
    assert sorted(written.decode().split(SEPARATOR)) == ["Onetwo .", "Three."]


def test_the_written_order_is_that_of_hashes_and_equal_documents_are_written_once(tmp_path):
    for name in ("a.py", "b.py", "c.py", "d.py", "e.py"):
        (tmp_path / name).write_text(f'"""{name.replace("e", "d")}"""')
    write_text(tmp_path / "out.txt", folder=tmp_path)
    found = (tmp_path / "out.txt").read_text().split(SEPARATOR)
    assert sorted(found) == ["a.py", "b.py", "c.py", "d.py"]
    assert found == sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())


def test_a_library_without_documentation_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no documentation"):
        write_text(tmp_path / "out.txt", folder=tmp_path)
