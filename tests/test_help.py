"""The help of every command: options under headings, sentences, defaults; and the nearest word."""

import importlib
import inspect
import re
from pathlib import Path

import click
import pytest
from worlds import invoke

from gptpack.cli import main
from gptpack.cli.help import Command
from gptpack.values import nearest


def commands() -> list[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    found = []
    for name in main.COMMANDS:
        command = importlib.import_module(f"gptpack.cli.{name}").command
        if isinstance(command, click.Group):
            found += [(f"{name} {word}", below) for word, below in command.commands.items()]
        else:
            found.append((name, command))
    return found


ALL = pytest.mark.parametrize(
    ("words", "command"), commands(), ids=[name for name, _ in commands()]
)


def options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden]


@ALL
def test_an_option_has_one_default_and_no_bracket_left_of_what_click_says_of_it(words, command):
    with click.Context(command, info_name=words, show_default=True) as context:
        text = " ".join(command.get_help(context).split())
    for default in re.findall(r"\[default: [^]]*\]", text):
        assert default.count("(") == default.count(")"), default
    assert not re.search(r"\[default: [^]]*\] *\[default: ", text), "two defaults of one option"


@ALL
def test_every_command_shows_an_example_before_anything_else(words, command):
    assert isinstance(command, Command)
    assert command.help is not None
    _, first, *_ = inspect.cleandoc(command.help).split("\n\n")
    assert first.startswith("\b\nExample"), words
    assert first.splitlines()[2].startswith(f"  gptpack {words.removesuffix(' make')}")


@ALL
def test_every_option_is_a_sentence(words, command):
    for option in options(command):
        text = (option.help or "").partition("[default")[0].strip()
        assert text[:1].isupper() or text[:1].isdigit() or text.startswith("--"), (words, option)
        assert text.endswith("."), (words, option)
        assert len(text) < 170, (words, option)


@ALL
def test_every_default_is_shown(words, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert invoke(*words.split(), "--help") == 0
    shown = capsys.readouterr().out
    stated = {
        names.split()[-1].strip(","): " ".join(text.split())
        for names, text in re.findall(r"^  ((?:-\w, )?--[\w-]+)(.*(?:\n {6,}.*)*)", shown, re.M)
    }
    for option in options(command):
        if isinstance(option.default, int | float | str | Path) and not option.is_flag:
            assert option.default == "" or "[default: " in stated[max(option.opts, key=len)], option
    assert "x>=" not in shown
    assert "default: (" not in shown


@pytest.mark.parametrize("name", ["pack", "train", "eval", "check", "diff", "stats", "sample"])
def test_the_options_of_large_commands_stand_under_headings(name, capsys):
    command = dict(commands())[name]
    titles = vars(command.callback)["headings"]
    assert {option.name for option in options(command)} <= set(titles)
    assert invoke(name, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Options:" not in lines
    shown = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert shown == list(dict.fromkeys(titles[option.name] for option in options(command)))


def test_without_arguments_there_are_the_first_commands_and_the_way_on(capsys):
    assert invoke() == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 8
    assert sum(line.startswith("  gptpack ") for line in said) == 4
    assert said[-1].endswith("gptpack --help")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["pakc"], "did you mean pack?"),
        (["data", "tokenise"], "did you mean tokenize?"),
        (["pack", "x", "--budge", "1MB"], "--budget"),
        (["pack", "x", "--budget", "1MB", "--tune", "float"], "did you mean floats?"),
        (["unpack", "x", "-o", "y", "--to", "guff"], "did you mean gguf?"),
        (["unpack", "x", "-o", "y"], "Missing option '--to'. Choose from: transformers"),
        (["eval", "x", "--limit-tokens", "4"], "--limit-tokens is now --eval-tokens"),
        (["diff", "x", "y", "--tokens", "4"], "--tokens is now --eval-tokens"),
        (["train", "--plan", "--recipe", "tiny", "--set", "training.second=1"], "mean seconds?"),
    ],
)
def test_a_word_that_is_not_known_names_the_nearest_one_in_a_line(words, meant, capsys):
    assert invoke(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert meant in line


def test_a_word_that_is_near_to_nothing_names_nothing():
    assert nearest("xyz", ["pack", "eval"]) == ""
