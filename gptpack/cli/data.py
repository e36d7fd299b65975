"""``gptpack data``: text to tokens."""

from pathlib import Path
from typing import get_args

import click

from gptpack.cli.console import note, print_json, print_table, progress_bars
from gptpack.data.documents import SEPARATOR, iterate_documents
from gptpack.data.download import DownloadConfig, download_fineweb
from gptpack.data.manifest import MANIFEST, Manifest, load_manifest, verify_manifest
from gptpack.data.shards import Shard, Split, find_shards, has_shards
from gptpack.data.tokenize import TokenizeConfig, tokenize_files
from gptpack.data.tokenizer import Normalization, Tokenizer, TokenizerConfig, train_tokenizer
from gptpack.errors import ConfigError, DataError
from gptpack.values import parse_size, to_dict

PATH = click.Path(path_type=Path)
SEPARATOR_OPTION = click.option(
    "--separator",
    default=SEPARATOR.encode("unicode_escape").decode(),
    show_default=True,
    help="Between documents of a .txt file; backslash escapes are understood.",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
QUIET_OPTION = click.option("--quiet", is_flag=True, help="No progress on stderr.")


@click.group()
def command() -> None:
    """Text to tokens: tokenizers, shards, downloads."""


@command.command("tokenizer")
@click.argument("sources", nargs=-1, required=True, type=PATH)
@click.option("--output", "-o", required=True, type=PATH, help="The model file to write.")
@click.option("--vocab", default=1024, show_default=True, help="Pieces.")
@click.option(
    "--normalization",
    type=click.Choice(get_args(Normalization)),
    default="nmt_nfkc",
    show_default=True,
    help="What becomes of the text before it is cut into pieces.",
)
@click.option("--keep-whitespace", is_flag=True, help="Keep runs of spaces and spaces at the ends.")
@click.option(
    "--sample", default="100MB", show_default=True, help="Text to train on; 0 takes all of it."
)
@SEPARATOR_OPTION
@click.option("--force", is_flag=True, help="Replace an existing file.")
@JSON_OPTION
@QUIET_OPTION
def tokenizer_command(
    sources: tuple[Path, ...],
    output: Path,
    vocab: int,
    normalization: Normalization,
    keep_whitespace: bool,
    sample: str,
    separator: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a SentencePiece BPE tokenizer with byte fallback.

    \b
    Example:
      gptpack data tokenizer corpus.txt.xz --vocab 1024 -o tok.model
    """
    if output.exists() and not force:
        raise DataError(f"{output} exists; choose another name or give --force")
    config = TokenizerConfig(
        vocab=vocab,
        normalization=normalization,
        keep_whitespace=keep_whitespace,
        sample_bytes=parse_size(sample),
    )
    between = _unescape(separator)
    documents = (text for source in sources for text in iterate_documents(source, between))
    with progress_bars(quiet=quiet) as progress:
        made = train_tokenizer(documents, output, config, progress)
    if as_json:
        print_json({"path": str(made.path), "vocab": made.vocab, "sha256": made.sha256})
    else:
        if made.vocab < vocab:
            note(f"the text yields {made.vocab:,} pieces only, not {vocab:,}")
        print_table(
            ["tokenizer", "pieces", "sha256"], [[str(made.path), f"{made.vocab:,}", made.sha256]]
        )


@command.command("tokenize")
@click.option("--train", "train_sources", multiple=True, type=PATH, help="A source; repeatable.")
@click.option("--val", "val_sources", multiple=True, type=PATH, help="A source; repeatable.")
@click.option("--val-documents", default=0, help="Without --val: the last so many documents.")
@click.option("--val-fraction", default=0.0, help="Without --val: about this part, by hash.")
@click.option("--tokenizer", "model", required=True, type=PATH, help="SentencePiece model.")
@click.option("--output", "-o", required=True, type=PATH, help="Directory to write.")
@click.option("--name", default="data", show_default=True, help="First part of the shards' names.")
@click.option("--shard-tokens", default=100_000_000, show_default=True)
@SEPARATOR_OPTION
@click.option("--workers", default=0, help="Processes; 0 takes one per core.")
@click.option("--force", is_flag=True, help="Replace the shards of an existing directory.")
@JSON_OPTION
@QUIET_OPTION
def tokenize_command(
    train_sources: tuple[Path, ...],
    val_sources: tuple[Path, ...],
    val_documents: int,
    val_fraction: float,
    model: Path,
    output: Path,
    name: str,
    shard_tokens: int,
    separator: str,
    workers: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn .txt and .jsonl files (.gz, .xz, .zst) into audited token shards.

    A document that is in both splits is refused.

    \b
    Examples:
      gptpack data tokenize --train train.txt.xz --val val.txt.xz --tokenizer tok.model -o shards
      gptpack data tokenize --train all.jsonl --val-fraction 0.01 --tokenizer tok.model -o shards
    """
    config = TokenizeConfig(
        name=name,
        shard_tokens=shard_tokens,
        separator=_unescape(separator),
        val_documents=val_documents,
        val_fraction=val_fraction,
        workers=workers,
        force=force,
    )
    tokenizer = Tokenizer.load(model)
    with progress_bars(quiet=quiet) as progress:
        manifest = tokenize_files(train_sources, val_sources, tokenizer, output, config, progress)
    _report(manifest, output, as_json=as_json)


@command.command("download")
@click.argument("dataset", type=click.Choice(["fineweb"]))
@click.option("--variant", default="sp1024", show_default=True, help="Tokenizer of the shards.")
@click.option("--shards", default=1, show_default=True, help="Train shards of 200 MB each.")
@click.option("--output", "-o", required=True, type=PATH, help="Directory to write.")
@click.option("--repo", default=DownloadConfig().repo, show_default=True)
@click.option("--root", default=DownloadConfig().root, show_default=True, help="Folder in it.")
@click.option("--revision", default="main", show_default=True, help="Branch or commit.")
@click.option("--endpoint", default=None, help="Another Hub, such as a mirror.")
@JSON_OPTION
@QUIET_OPTION
def download_command(
    dataset: str,
    variant: str,
    shards: int,
    output: Path,
    repo: str,
    root: str,
    revision: str,
    endpoint: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fetch the contest's published shards; an interrupted download goes on.

    Needs the extra: pip install 'gptpack[hub]'.

    \b
    Example:
      gptpack data download fineweb --variant sp1024 --shards 10 -o fineweb
    """
    del dataset
    config = DownloadConfig(
        variant=variant, shards=shards, repo=repo, root=root, revision=revision, endpoint=endpoint
    )
    with progress_bars(quiet=quiet) as progress:
        got = download_fineweb(output, config, progress)
    if as_json:
        print_json(
            {
                "directory": str(got.directory),
                "commit": got.commit,
                "tokenizer": str(got.tokenizer),
                "val": [str(path) for path in got.val],
                "train": [str(path) for path in got.train],
            }
        )
    else:
        note(f"{got.directory}: {repo} at {got.commit}")
        _print_shards(output, as_json=False)


@command.command("info")
@click.argument("directory", type=PATH)
@JSON_OPTION
@QUIET_OPTION
def info_command(directory: Path, as_json: bool, quiet: bool) -> None:
    """Show what a directory of shards holds, and read every shard to check it.

    With a manifest, counts and hashes must be those it states.

    \b
    Example:
      gptpack data info shards --json
    """
    if not (directory / MANIFEST).exists():
        _print_shards(directory, as_json=as_json)
        return
    manifest = load_manifest(directory)
    with progress_bars(quiet=quiet) as progress:
        verify_manifest(directory, manifest, progress)
    _report(manifest, directory, as_json=as_json)


def _unescape(separator: str) -> str:
    try:
        unescaped = separator.encode("latin-1", "backslashreplace").decode("unicode_escape")
        unescaped.encode()
        return unescaped
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f"--separator {separator}: {error.reason}") from error


def _report(manifest: Manifest, directory: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"directory": str(directory), **to_dict(manifest)})
        return
    rows = [
        [
            name,
            f"{split.documents:,}",
            f"{split.tokens:,}",
            f"{split.text_bytes:,}",
            f"{split.accounted_bytes:,}",
            f"{split.unknown_tokens:,}",
            f"{len(split.shards):,}",
        ]
        for name, split in (("train", manifest.train), ("val", manifest.val))
    ]
    print_table(
        ["split", "documents", "tokens", "text bytes", "token bytes", "unknown tokens", "shards"],
        rows,
        title=f"{directory}: {manifest.name}, {manifest.tokenizer.vocab:,} pieces "
        f"({manifest.tokenizer.name}); {manifest.split_rule}",
    )
    unknown = manifest.train.unknown_tokens + manifest.val.unknown_tokens
    if unknown:
        note(
            f"{unknown:,} tokens are unknown pieces and count 0 bytes: the tokenizer has no byte "
            "fallback, and bits per byte leaves the text behind them out"
        )


def _print_shards(directory: Path, *, as_json: bool) -> None:
    """A directory without a manifest: each shard's tokens."""
    splits = [split for split in get_args(Split) if has_shards(directory, split)]
    paths = [path for split in splits or ["val"] for path in find_shards(directory, split)]
    shards = [Shard.open(path) for path in paths]
    if as_json:
        print_json(
            {
                "directory": str(directory),
                "shards": [
                    {"file": shard.path.name, "tokens": len(shard.tokens)} for shard in shards
                ],
            }
        )
    else:
        rows = [[shard.path.name, f"{len(shard.tokens):,}"] for shard in shards]
        print_table(["shard", "tokens"], rows, title=f"{directory}: no {MANIFEST}")
