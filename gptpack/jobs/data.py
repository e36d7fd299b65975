"""Text files, or the name of a data set -> tokenizers and shards; shards -> what they hold.

Results are plain: dictionaries, as `gptpack data --json` prints them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from gptpack.data.documents import SEPARATOR, iterate_documents
from gptpack.data.download import DownloadConfig, download_fineweb
from gptpack.data.manifest import MANIFEST, Manifest, load_manifest, verify_manifest
from gptpack.data.shards import Shard, Split, find_shards, has_shards
from gptpack.data.tokenize import TokenizeConfig, tokenize_files
from gptpack.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptpack.errors import DataError
from gptpack.progress import Progress, silent
from gptpack.values import to_dict

DEFAULTS = {
    **to_dict(TokenizerConfig()),
    **to_dict(TokenizeConfig()),
    **to_dict(DownloadConfig()),
}
"""Values of the settings that are not given, of all functions here."""


def make_tokenizer(
    sources: Sequence[Path],
    output: Path,
    *,
    separator: str = SEPARATOR,
    force: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Train a SentencePiece tokenizer on the documents of text files.

    Args:
        separator: stands between the documents of a ``.txt`` file.
        force: replace a file at `output`.
        settings: fields of `TokenizerConfig`.

    Returns:
        The file's ``path``, ``vocab`` (fewer pieces than asked for if the text has no more), and
        ``sha256``.

    Raises:
        DataError: unreadable sources, or `output` exists.
        TokenizerError: SentencePiece refuses the text or the settings.
    """
    if output.exists() and not force:
        raise DataError(f"{output} exists; choose another name or give --force")
    config = TokenizerConfig(**settings)
    documents = (text for source in sources for text in iterate_documents(source, separator))
    made = train_tokenizer(documents, output, config, progress)
    return {"path": str(made.path), "vocab": made.vocab, "sha256": made.sha256}


def tokenize(
    train: Sequence[Path],
    val: Sequence[Path],
    tokenizer: Path,
    output: Path,
    *,
    progress: Progress = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Turn text files into audited shards; `settings` are fields of `TokenizeConfig`.

    Returns:
        The ``directory`` and its manifest.

    Raises:
        DataError: see `tokenize_files`.
    """
    config = TokenizeConfig(**settings)
    made = tokenize_files(train, val, Tokenizer.load(tokenizer), output, config, progress)
    return _described(output, made)


def download(output: Path, *, progress: Progress = silent, **settings: Any) -> dict[str, Any]:
    """Fetch published shards; `settings` are fields of `DownloadConfig`.

    Returns:
        The ``directory``, the ``commit`` it is of, and its files.

    Raises:
        DataError, MissingDependencyError: see `download_fineweb`.
    """
    got = download_fineweb(output, DownloadConfig(**settings), progress)
    return {
        "directory": str(got.directory),
        "commit": got.commit,
        "tokenizer": str(got.tokenizer),
        "val": [str(path) for path in got.val],
        "train": [str(path) for path in got.train],
    }


def describe(directory: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """What a folder of shards holds; all of it is read and checked.

    Returns:
        The ``directory`` and its manifest, or, without one, the ``shards`` with their tokens.

    Raises:
        DataError: no shards, a malformed one, or others than the manifest states.
    """
    if (directory / MANIFEST).exists():
        manifest = load_manifest(directory)
        verify_manifest(directory, manifest, progress)
        return _described(directory, manifest)
    splits = [split for split in get_args(Split) if has_shards(directory, split)]
    paths = [path for split in splits or ["val"] for path in find_shards(directory, split)]
    shards = [{"file": path.name, "tokens": len(Shard.open(path).tokens)} for path in paths]
    return {"directory": str(directory), "shards": shards}


def check_scorable(
    directory: Path,
    *,
    vocab: int,
    bos: int,
    context: int,
    stride: int | None = None,
    limit_tokens: int = 0,
    tokenizer: Path | None = None,
) -> None:
    """Check that a model can be scored on the val shards of `directory`, before it is made.

    Args:
        vocab, bos, context: those of the model.
        stride: windows that move by so many targets are checked as well as plain ones.
        limit_tokens: targets that will be scored; 0 is all.
        tokenizer: the tokenizer's file; None is the one beside the shards.

    Raises:
        GptpackError: the evaluation would fail; says why.
    """
    from gptpack.evaluation.text import Text
    from gptpack.evaluation.windows import plan_windows

    text = Text.load(
        directory, vocab=vocab, bos=bos, tokenizer=tokenizer, limit_tokens=limit_tokens
    )
    for step in {None, stride}:
        plan_windows(len(text.tokens), context=context, stride=step, limit_tokens=limit_tokens)


def _described(directory: Path, manifest: Manifest) -> dict[str, Any]:
    return {"directory": str(directory), **to_dict(manifest)}
