"""What the documentation tells people to type can be typed, and what it says of files holds."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from gptpack.cli import main
from gptpack.gate.limits import load_check

ROOT = Path(__file__).parent.parent
LOG = sorted((ROOT / "docs" / "log").glob("*.md"))
COMMANDS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Pages whose commands are today's; the log keeps those of its days."""
PAGES = [*COMMANDS, *LOG]
TUTORIALS = [path for path in PAGES if path.name.startswith("tutorial-")]


def code_lines(text: str) -> Iterator[str]:
    """Lines of indented and fenced code, continuations joined."""
    joined = text.replace("\\\n", " ")
    fenced = False
    for line in joined.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def commands(path: Path) -> list[list[str]]:
    """The words behind ``gptpack`` of each command of a page."""
    found = []
    for line in code_lines(path.read_text(encoding="utf-8")):
        command = re.sub(r"^(\$ |- |time |torchrun .*?(?=\b(train|pack|eval)\.py))", "", line)
        command = re.sub(r"^(train|pack|eval)\.py", r"gptpack \1", command)
        if command.startswith("gptpack "):
            words = shlex.split(re.split(r" [>|]| && | \(|  +[a-z(]", command)[0])
            found.append(words[1:])
    return found


def parse(words: list[str]) -> None:
    """Parse a command line without running it; raises what click has to say against it."""
    command: click.Command = main.group
    context = command.make_context("gptpack", list(words))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, words
        command, context = found, found.make_context(name, rest, parent=context)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_command_of_a_page_parses(path):
    for words in commands(path):
        if any("..." in word or word == "COMMAND" for word in words):
            continue
        if "--version" in words or "--help" in words:
            continue
        try:
            parse(words)
        except click.ClickException as error:
            raise AssertionError(f"{path.name}: gptpack {shlex.join(words)}: {error}") from error


def test_the_index_of_the_log_has_each_entry_once_newest_first():
    index = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| (.*) \| \[.*\]\((.*)\) \|$", index, re.M)
    entries = [
        (date, title, f"log/{page.name}")
        for page in LOG
        for date, title in re.findall(
            r"^## (\S+)  (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert sorted(rows) == sorted(entries)
    assert [date for date, *_ in rows] == sorted((date for date, *_ in rows), reverse=True)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_a_tutorial_has_commands(path):
    assert len(commands(path)) >= 4


def blocks(path: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.name)
def test_the_tables_of_the_tutorials_load(path, tmp_path):
    for text in blocks(path, "toml"):
        (tmp_path / "gptpack.toml").write_text(text)
        assert load_check(tmp_path / "gptpack.toml").artifacts


def test_this_repositorys_own_table_loads():
    (limits,) = load_check(ROOT / "gptpack.toml").artifacts
    assert (limits.path, limits.budget) == ("demo/demo.gptpack", "150KB")


def test_the_workflows_to_copy_are_yaml_and_ask_for_nothing_but_reading():
    github, gitlab = map(yaml.safe_load, blocks(ROOT / "docs" / "tutorial-ci.md", "yaml"))
    assert github["permissions"] == {"contents": "read"}
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    given = github["jobs"]["check"]["steps"][-1]["with"]
    assert set(given) <= set(action["inputs"])
    assert "junit" in gitlab["model"]["artifacts"]["reports"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_dependency_has_its_licence_listed():
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    needed = set(re.findall(r"^    ([A-Za-z0-9_-]+)>=", setup, re.MULTILINE))
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| \S", page, re.MULTILINE)
    listed = {name.strip() for row in rows for name in row.split(",")} - {"package", "---"}
    assert len(needed) > 20
    assert listed == needed
    always = setup.partition("install_requires =\n")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| (\S+) \| always", page, re.M)) == set(
        re.findall(r"^    (\w+)>=", always, re.M)
    )
