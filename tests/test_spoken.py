"""Errors name options to whoever types them, and arguments to whoever calls from Python."""

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from worlds import invoke

import gptpack
from gptpack.cli import main
from gptpack.data.tokenize import TokenizeConfig
from gptpack.data.tokenizer import TokenizerConfig
from gptpack.errors import ARGUMENTS, OPTION, ConfigError, GptpackError, spoken
from gptpack.jobs.request import PackRequest

PACKAGE = Path(gptpack.__file__).parent
CALLED = (
    gptpack.pack, gptpack.train, gptpack.evaluate, gptpack.check, gptpack.load, gptpack.unpack,
    PackRequest, TokenizerConfig, TokenizeConfig,
)  # fmt: skip
OTHERS = {"standalone.py", "fresh.py", "submission_check.py", "folder.py", "page.py"}
"""Files that make or print command lines, and one with a style sheet."""
TYPED = {"curve", "curve-bits", "json", "metric", "record-loss", "tokens-per-byte", "unit", "val"}
"""Options of commands that are no function of the public surface."""


@functools.cache
def said() -> tuple[tuple[str, str], ...]:
    """Each text of the library that is no docstring, with its file; f-strings without values."""
    return tuple(_said())


def _said() -> Iterator[tuple[str, str]]:
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.parts or path.name in OTHERS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inside = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
            for part in node.values
        }  # fmt: skip
        for node in ast.walk(tree):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            if id(node) in bare | inside:
                continue
            texts = [p.value if isinstance(p, ast.Constant) else "X" for p in parts]
            text = "".join(t for t in texts if isinstance(t, str))
            yield path.name, text


def options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from options(found)


def test_every_option_that_a_message_names_is_one_and_an_argument_too():
    known = set(options(main.group))
    arguments = {name for called in CALLED for name in inspect.signature(called).parameters}
    named = {found[1] for _, text in said() for found in OPTION.finditer(text) if found[1]}
    assert len(named) > 30
    for name in named:
        assert f"--{name}" in known, name
        argument = ARGUMENTS.get(name, name.replace("-", "_")).partition("=")[0]
        assert name in TYPED or argument in arguments, name


def test_no_message_names_an_argument_beside_its_option():
    for name, text in said():
        assert not re.search(r"\(\w+=(True|False)\)|from Python", text), (name, text)


def test_an_error_is_read_with_arguments_from_python_and_with_options_from_a_command():
    text = (
        "my--model/a.pt exists; give --force, or another --eval-text, or run: gptpack data "
        "tokenize --val x"
    )
    error = ConfigError(text)
    assert str(error) == (
        "my--model/a.pt exists; give force=True, or another eval_text, or run: gptpack data "
        "tokenize --val x"
    )
    GptpackError.in_options = True
    try:
        assert str(error) == spoken(text) == text
        # what is raised again from what was said keeps its words
        again = ConfigError(f"a.pt: {error}")
    finally:
        GptpackError.in_options = False
    assert "force=True" in str(again)


@pytest.mark.parametrize(
    ("words", "typed", "called"),
    [
        (
            ("pack", "m.pt", "--budget", "1MB", "--bits", "3"),
            "--budget and --bits exclude each other",
            "budget and bits exclude each other",
        ),
        (
            ("pack", "m.pt", "--budget", "1MB", "--states", "7"),
            "--states 7: the trellis has",
            "states=7: the trellis has",
        ),
        (
            ("pack", "m.pt", "--budget", "1MB", "--tune-seconds", "9"),
            "--tune-seconds does nothing without --tune floats or deep",
            "tune_seconds does nothing without tune floats or deep",
        ),
    ],
)
def test_the_same_mistake_reads_true_in_both_places(
    tmp_path, monkeypatch, capsys, words, typed, called
):
    monkeypatch.chdir(tmp_path)
    Path("m.pt").write_bytes(b"PK\3\4")
    assert invoke(*words) == 2
    assert f"gptpack: {typed}" in capsys.readouterr().err
    options = [word.removeprefix("--").replace("-", "_") for word in words[2::2]]
    values = [value if value == "1MB" else int(value) for value in words[3::2]]
    with pytest.raises(ConfigError) as caught:
        gptpack.pack("m.pt", **dict(zip(options, values, strict=True)))
    assert called in str(caught.value)


def test_a_limit_of_the_table_is_no_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("gptpack.toml").write_text("[[check.artifact]]\npath = 'm'\nmax_bpb = -1.0\n")
    assert invoke("check") == 2
    assert "max_bpb=-1.0 must be positive" in capsys.readouterr().err
    assert invoke("check", "m", "--max-bpb", "-1") == 2
    assert "--max-bpb -1.0 must be positive" in capsys.readouterr().err
