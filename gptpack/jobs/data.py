"""Text files, or the name of a data set -> tokenizers and shards; shards -> what they hold.

Results are plain: dictionaries, as `gptpack data --json` prints them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from gptpack.atomic import check_writable
from gptpack.data.byte_pairs import GPT2_SHA256, load_tokenizer
from gptpack.data.documents import SEPARATOR, iterate_documents
from gptpack.data.download import DownloadConfig, download_fineweb
from gptpack.data.manifest import TOKENIZER
from gptpack.data.overlap import overlap_beside
from gptpack.data.shards import Shard, Split, has_shards
from gptpack.data.splits import manifest_beside, open_split
from gptpack.data.tokenize import TokenizeConfig, tokenize_files
from gptpack.data.tokenizer import TokenizerConfig, train_tokenizer
from gptpack.errors import DataError
from gptpack.progress import Progress, silent
from gptpack.values import MAX_VOCAB, to_dict

DEFAULTS = {
    **to_dict(TokenizerConfig()),
    **to_dict(TokenizeConfig()),
    **to_dict(DownloadConfig()),
}
"""Values of the settings that are not given, of all functions here."""
GPT2_RANKS = GPT2_SHA256
"""Hash of GPT-2's own tokenizer, as a manifest states it."""


def make_tokenizer(
    sources: Sequence[Path],
    output: Path,
    *,
    separator: str = SEPARATOR,
    force: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Train a tokenizer on text files; the result has its ``path``, ``vocab`` and ``sha256``.

    Args:
        separator: stands between the documents of a ``.txt`` file.
        force: replace a file at `output`.
        settings: fields of `TokenizerConfig`.

    Raises:
        DataError: unreadable sources, or `output` exists.
        TokenizerError: SentencePiece refuses the text or the settings.
    """
    if output.exists() and not force:
        raise DataError(f"{output} exists; choose another name or give --force")
    check_writable(output, DataError)
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
    """Turn text files into shards; the result has the ``directory`` and its manifest.

    `settings` are fields of `TokenizeConfig`; for errors see `tokenize_files`.
    """
    config = TokenizeConfig(**settings)
    made = tokenize_files(train, val, load_tokenizer(tokenizer), output, config, progress)
    return {"directory": str(output), **to_dict(made)}


def download(output: Path, *, progress: Progress = silent, **settings: Any) -> dict[str, Any]:
    """Fetch published shards; the result has ``directory``, ``repo``, ``commit`` and the files.

    `settings` are fields of `DownloadConfig`; for errors see `download_fineweb`.
    """
    config = DownloadConfig(**settings)
    got = download_fineweb(output, config, progress)
    files = {"val": [str(path) for path in got.val], "train": [str(path) for path in got.train]}
    where = {"directory": str(got.directory), "repo": config.repo, "commit": got.commit}
    return {**where, "tokenizer": got.tokenizer and str(got.tokenizer), **files}


def describe(directory: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Read and check all shards; the result has the ``directory``, and its manifest or ``shards``.

    Where train and val were compared, ``overlap`` has what they share. That needs a tokenizer,
    which says how documents begin; a manifest may promise that they share nothing.

    Raises:
        DataError: no shards, a malformed one, others than the manifest states, or documents of
            val that are in train as well.
    """
    from gptpack.evaluation.text import read_vocabulary

    manifest = manifest_beside(directory)
    beside = directory / (manifest.tokenizer.file if manifest else TOKENIZER)
    here = manifest or beside.exists()
    tokenizer = read_vocabulary(beside, vocab=MAX_VOCAB) if here else None
    if manifest and tokenizer:
        manifest.check_tokenizer(beside, tokenizer.sha256)
    vocab = tokenizer.vocab if tokenizer else MAX_VOCAB
    splits = [
        split
        for split in get_args(Split)
        if has_shards(directory, split) or (manifest and manifest.split(split))
    ]
    found: dict[str, Any] = {"directory": str(directory), **(to_dict(manifest) if manifest else {})}
    opened: dict[str, list[Shard]] = {
        split: open_split(directory, split, vocab, progress=progress) for split in splits or ["val"]
    }
    if not manifest:
        found["shards"] = [
            {"file": shard.path.name, "tokens": len(shard.tokens), "sha256": shard.sha256}
            for shards in opened.values()
            for shard in shards
        ]
    shared = tokenizer and overlap_beside(directory, opened.get("val", []), tokenizer.bos)
    if shared:
        shared.check(directory)
        found["overlap"] = to_dict(shared)
    return found


def check_scorable(
    directory: Path,
    *,
    vocab: int,
    bos: int | None,
    context: int,
    stride: int | None = None,
    limit_tokens: int = 0,
    tokenizer: Path | None = None,
) -> None:
    """Check, before work is put into a model, that val shards can score it.

    Args:
        bos: token that begins a document; None where nobody has said it.
        stride: also check windows that move by so many targets.
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
