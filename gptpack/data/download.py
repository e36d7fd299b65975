"""The name of a published data set -> its shards from the Hugging Face Hub, checked by hash.

Nothing else in gptpack reaches the network. No credentials are sent.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.atomic import replacing
from gptpack.data.byte_pairs import GPT2_SHA256, load_tokenizer
from gptpack.data.manifest import TOKENIZER
from gptpack.data.shards import Shard
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import ConfigError, DataError, MissingDependencyError, TokenizerError
from gptpack.escape import first_line
from gptpack.inputs import file_sha256, read_input
from gptpack.progress import Progress, silent
from gptpack.values import NOT_NEGATIVE, check_fields

EXPORT_MANIFEST = "export_manifest.json"
"""File name of the publisher's manifest here, as ours is another format."""
GPT2 = "gpt2"
"""Variant of the speedruns' data set: shards alone, without a manifest or a tokenizer."""
GPT2_VOCAB = 50257
GPT2_TRAIN_SHARDS = 103
REPOS = {"sp": "willdepueoai/parameter-golf", GPT2: "kjj0/fineweb10B-gpt2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadConfig:
    """Files of a published export that are to be fetched."""

    variant: str = "sp1024"
    """Tokenizer of the shards: ``sp`` and the size of its vocabulary, or ``gpt2``."""
    shards: int = 1
    """Number of train shards, from the first; validation always comes whole."""
    repo: str = ""
    """Repository of the Hub; empty takes the one in which the variant was published."""
    root: str = "datasets"
    """Folder of the repository that holds the export's ``manifest.json``; ``gpt2`` has none."""
    tokenizer: Path | None = None
    """File of GPT-2's ranks that goes beside the shards of ``gpt2``, which come without."""
    revision: str = "main"
    endpoint: str | None = None
    """Address of the Hub; None takes huggingface_hub's own setting."""

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"{GPT2}|sp[0-9]{{1,6}}", self.variant):
            raise ConfigError(
                f"variant '{self.variant}': write sp and a size, such as sp1024, or {GPT2}"
            )
        if self.tokenizer is not None and self.variant != GPT2:
            raise ConfigError(f"variant {self.variant} comes with its tokenizer; leave yours out")
        if not self.repo:
            object.__setattr__(self, "repo", REPOS[GPT2 if self.variant == GPT2 else "sp"])
        check_fields(self, NOT_NEGATIVE, "shards")
        if self.endpoint is not None and not re.fullmatch(r"https?://[^\s/]+\S*", self.endpoint):
            raise ConfigError(f"endpoint '{self.endpoint}': write an address like https://host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Files that a download left in a directory."""

    directory: Path
    commit: str
    """The repository's commit, which every file is of."""
    tokenizer: Path | None
    """None where none was published and none was given."""
    val: tuple[Path, ...]
    train: tuple[Path, ...]


def download_fineweb(
    output_dir: str | Path, config: DownloadConfig | None = None, progress: Progress = silent
) -> Download:
    """Fetch the tokenizer, all validation shards and the first train shards into `output_dir`.

    The tokenizer of ``gpt2`` is not published beside them; a local file of its ranks may be given.

    A file that is there and has the published hash is kept. The tokenizer becomes
    ``tokenizer.model``, as `tokenize_files` names it.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        DataError: the Hub cannot be reached or lacks a file, a hash differs, or a shard is
            malformed. Files that are whole stay, so that the same call goes on.
        TokenizerError: the file that was given has not GPT-2's ranks.
    """
    config = config or DownloadConfig()
    hub = _Hub(config)
    output = Path(output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        return _download(hub, output, config, progress)
    except OSError as error:
        raise DataError(f"{output}: cannot write: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is fetched: a folder of the repository, names in it, and the tokenizer beside them."""

    folder: str
    val: list[str]
    train: list[str]
    vocab: int
    tokenizer: Path | None


def _download(hub: "_Hub", output: Path, config: DownloadConfig, progress: Progress) -> Download:
    # the first answer names the commit; everything else is asked of that one
    plan = _gpt2(output, config) if config.variant == GPT2 else _contest(hub, output, config)
    names = plan.val + plan.train
    for done, name in enumerate(names):
        progress("download (shards)", done, len(names))
        hub.fetch(plan.folder + name, output / name)
        Shard.open(output / name, plan.vocab)
    progress("download (shards)", len(names), len(names))
    return Download(
        directory=output,
        commit=hub.revision,
        tokenizer=plan.tokenizer,
        val=tuple(output / name for name in plan.val),
        train=tuple(output / name for name in plan.train),
    )


def _gpt2(output: Path, config: DownloadConfig) -> _Plan:
    """The speedruns' shards; train's are numbered from 1."""
    _check_shards(config, GPT2_TRAIN_SHARDS)
    if config.tokenizer is not None:
        ranks = load_tokenizer(config.tokenizer)
        if ranks.sha256 != GPT2_SHA256:
            raise TokenizerError(
                f"{config.tokenizer}: not GPT-2's ranks; give its vocab.bpe or r50k_base.tiktoken"
            )
        with replacing(output / TOKENIZER, DataError) as file:
            file.write(ranks.content())
    return _Plan(
        folder="",
        val=["fineweb_val_000000.bin"],
        train=[f"fineweb_train_{number:06d}.bin" for number in range(1, config.shards + 1)],
        vocab=GPT2_VOCAB,
        tokenizer=output / TOKENIZER if config.tokenizer else None,
    )


def _contest(hub: "_Hub", output: Path, config: DownloadConfig) -> _Plan:
    """The contest's shards, by the manifest that it publishes with the tokenizer."""
    manifest = output / EXPORT_MANIFEST
    hub.fetch(f"{config.root}/manifest.json", manifest)
    dataset, val_shards, model_path = _read_plan(manifest, config)
    hub.fetch(f"{config.root}/{model_path}", output / TOKENIZER)
    return _Plan(
        folder=f"{config.root}/datasets/{dataset}/",
        val=[f"fineweb_val_{number:06d}.bin" for number in range(val_shards)],
        train=[f"fineweb_train_{number:06d}.bin" for number in range(config.shards)],
        vocab=Tokenizer.load(output / TOKENIZER).vocab,
        tokenizer=output / TOKENIZER,
    )


def _check_shards(config: DownloadConfig, published: int) -> None:
    """Raise a `DataError` if more train shards are asked for than there are."""
    if config.shards > published:
        raise DataError(
            f"{config.repo} has {published} train shards of {config.variant}, "
            f"fewer than the {config.shards} asked for"
        )


def _read_plan(path: Path, config: DownloadConfig) -> tuple[str, int, str]:
    """Data set, number of val shards and tokenizer's path, by the publisher's manifest."""
    dataset = f"fineweb10B_{config.variant}"
    try:
        values = json.loads(read_input(path))
        entries = {entry["name"]: entry for entry in values["datasets"]}
        tokenizers = {entry["name"]: entry for entry in values["tokenizers"]}
        if dataset not in entries:
            raise DataError(
                f"{config.repo} has no {dataset}; there are: {', '.join(sorted(entries))}"
            )
        stats = entries[dataset]["stats"]
        train_shards, val_shards = int(stats["files_train"]), int(stats["files_val"])
        model_path = tokenizers[entries[dataset]["tokenizer_name"]]["model_path"]
        if not isinstance(model_path, str) or not model_path:
            raise TypeError("model_path is not a path")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: not the contest's manifest ({type(error).__name__}: {error}); "
            "check the repository and its root folder"
        ) from error
    _check_shards(config, train_shards)
    return dataset, val_shards, model_path


class _Hub:
    """The few calls of huggingface_hub that this needs, with its errors made ours."""

    def __init__(self, config: DownloadConfig) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors, utils
        except ImportError as error:
            raise MissingDependencyError(
                "downloads need huggingface_hub; install it with: pip install 'gptpack[hub]'"
            ) from error
        self.revision = config.revision
        self._config = config
        self._library: Any = huggingface_hub
        self._utils: Any = utils
        # its bases hold the root of the HTTP library's errors, be that httpx or requests
        self._failures: tuple[type[Exception], ...] = (*errors.HfHubHTTPError.__bases__, OSError)
        self._invalid: type[Exception] = errors.HFValidationError

    def fetch(self, remote: str, path: Path) -> None:
        """Make `path` the published file `remote`, unless it is that already."""
        where = {
            "repo_type": "dataset",
            "revision": self.revision,
            "endpoint": self._config.endpoint,
        }
        with self._calls(remote):
            url = self._library.hf_hub_url(self._config.repo, remote, **where)
            found = self._library.get_hf_file_metadata(url, token=False)
        etag = found.etag or ""
        if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag):
            raise DataError(
                f"{remote}: the Hub states no hash (ETag {etag!r}); it cannot be checked"
            )
        self.revision = where["revision"] = found.commit_hash or self.revision
        if path.is_file() and _has_hash(path, etag):
            return
        with tempfile.TemporaryDirectory(prefix=".gptpack-", dir=path.parent) as folder:
            with self._calls(remote):
                arrived = self._library.hf_hub_download(
                    self._config.repo, remote, local_dir=folder, token=False, **where
                )
            if not _has_hash(Path(arrived), etag):
                raise DataError(
                    f"{remote}: what arrived does not have the published hash {etag}; "
                    "it was dropped, run again"
                )
            Path(arrived).replace(path)

    @contextmanager
    def _calls(self, remote: str) -> Iterator[None]:
        """Inside, the library draws no progress bars, and its errors become ours."""
        drawn = not self._utils.are_progress_bars_disabled()
        self._utils.disable_progress_bars()
        try:
            yield
        except self._invalid as error:
            raise ConfigError(f"repository '{self._config.repo}': {first_line(error)}") from error
        except self._failures as error:
            raise DataError(
                f"{self._config.repo}/{remote}: {first_line(error)}; run again to go on"
            ) from error
        finally:
            if drawn:
                self._utils.enable_progress_bars()


def _has_hash(path: Path, etag: str) -> bool:
    """Whether a file has the hash that the Hub states: SHA-256, or Git's SHA-1 if it is small."""
    if len(etag) == 64:
        return file_sha256(path) == etag
    data = read_input(path)
    blob = b"blob %d\0" % len(data) + data
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == etag
