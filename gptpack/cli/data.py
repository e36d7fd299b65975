"""`gptpack data`: text -> a tokenizer, token shards, and what they hold."""

from pathlib import Path
from typing import Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note, print_json, print_table
from gptpack.cli.data_options import JSON, NORMALIZATION, OUTPUT, PATH, QUIET, SEPARATOR, setting
from gptpack.cli.data_report import print_found
from gptpack.cli.help import Choice, Group
from gptpack.jobs import data as jobs
from gptpack.values import parse_size


@click.group(cls=Group)
def command() -> None:
    """Text to tokens: tokenizers, shards, downloads."""


@command.command("tokenizer")
@click.argument("sources", nargs=-1, required=True, type=PATH)
@click.option("--output", "-o", required=True, type=PATH, help="The model file to write.")
@setting("vocab", "Pieces.")
@setting("normalization", "What becomes of the text before it is cut into pieces.", NORMALIZATION)
@click.option("--keep-whitespace", is_flag=True, help="Keep runs of spaces and spaces at the ends.")
@click.option("--sample", default="100MB", help="Text to train on; 0: all.")
@SEPARATOR
@click.option("--force", is_flag=True, help="Replace an existing file.")
@JSON
@QUIET
def tokenizer_command(sample: str, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Train a SentencePiece BPE tokenizer with byte fallback.

    \b
    Example:
      gptpack data tokenizer corpus.txt.xz --vocab 1024 -o tok.model
    """
    settings["sample_bytes"] = parse_size(sample)
    with progress_bars(quiet=quiet) as progress:
        made = jobs.make_tokenizer(progress=progress, **settings)
    if as_json:
        print_json(made)
        return
    if made["vocab"] < settings["vocab"]:
        note(f"the text yields {made['vocab']:,} pieces only, not {settings['vocab']:,}")
    row = [made["path"], f"{made['vocab']:,}", made["sha256"]]
    print_table(["tokenizer", "pieces", "sha256"], [row])


@command.command("tokenize")
@click.option("--train", multiple=True, type=PATH, help="A source; repeatable.")
@click.option("--val", multiple=True, type=PATH, help="A source; repeatable.")
@click.option(
    "--val-documents",
    default=0,
    show_default="none",
    help="Without --val: the last so many documents.",
)
@click.option(
    "--val-fraction",
    default=0.0,
    show_default="none",
    help="Without --val: about this part, by hash.",
)
@click.option("--tokenizer", required=True, type=PATH, help="SentencePiece model, or ranks.")
@OUTPUT
@setting("name", "First part of the shards' names.")
@setting("shard_tokens", "Tokens of a shard.")
@SEPARATOR
@click.option("--workers", default=0, show_default="one per core", help="Processes that tokenize.")
@click.option("--force", is_flag=True, help="Replace the shards of an existing directory.")
@JSON
@QUIET
def tokenize_command(as_json: bool, quiet: bool, **settings: Any) -> None:
    """Turn .txt and .jsonl files (.gz, .xz, .zst) into audited token shards.

    \b
    Examples:
      gptpack data tokenize --train train.txt.xz --val val.txt.xz --tokenizer tok.model -o shards
      gptpack data tokenize --train all.jsonl --val-fraction 0.01 --tokenizer tok.model -o shards

    A document that is in both splits, by its tokens, is refused.
    """
    with progress_bars(quiet=quiet) as progress:
        found = jobs.tokenize(progress=progress, **settings)
    print_json(found) if as_json else print_found(found)


@command.command("download")
@click.argument("dataset", type=Choice(["fineweb"]), expose_value=False)
@setting("variant", "Tokenizer of the shards.")
@setting("shards", "Train shards of 200 MB each.")
@OUTPUT
@click.option("--tokenizer", type=PATH, help="GPT-2's ranks, to go beside the shards of gpt2.")
@click.option("--repo", default="", show_default="the variant's", help="Repository of the Hub.")
@setting("root", "Folder in it that has the contest's manifest.")
@setting("revision", "Branch or commit.")
@click.option("--endpoint", help="Address of another Hub, such as a mirror.")
@JSON
@QUIET
def download_command(output: Path, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Fetch published shards; those that are there already, and whole, are kept.

    \b
    Examples:
      gptpack data download fineweb --variant sp1024 --shards 10 -o fineweb
      gptpack data download fineweb --variant gpt2 --shards 9 --tokenizer vocab.bpe -o fineweb

    Needs the extra: pip install 'gptpack[hub]'.
    """
    with progress_bars(quiet=quiet) as progress:
        got = jobs.download(output, progress=progress, **settings)
    if as_json:
        print_json(got)
        return
    note(f"{got['directory']}: {got['repo']} at {got['commit']}")
    print_found(jobs.describe(output))


@command.command("info")
@click.argument("directory", type=PATH)
@JSON
@QUIET
def info_command(directory: Path, as_json: bool, quiet: bool) -> None:
    """Show what a directory of shards holds, and read every shard to check it.

    \b
    Example:
      gptpack data info shards --json

    With a manifest, files, counts and hashes must be those it states. Without one, documents of
    val that are in train as well are counted; above 1% of val's tokens they are refused.
    """
    with progress_bars(quiet=quiet) as progress:
        found = jobs.describe(directory, progress=progress)
    print_json(found) if as_json else print_found(found)
