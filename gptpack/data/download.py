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

from gptpack.data.manifest import TOKENIZER
from gptpack.data.shards import Shard
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import ConfigError, DataError, MissingDependencyError
from gptpack.escape import first_line
from gptpack.inputs import file_sha256, read_input
from gptpack.progress import Progress, silent
from gptpack.values import NOT_NEGATIVE, check_fields

EXPORT_MANIFEST = "export_manifest.json"
"""File name of the publisher's manifest here, as ours is another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadConfig:
    """Files of a published export that are to be fetched."""

    variant: str = "sp1024"
    """Tokenizer of the shards: ``sp`` and the size of its vocabulary."""
    shards: int = 1
    """Number of train shards, from the first; validation always comes whole."""
    repo: str = "willdepueoai/parameter-golf"
    root: str = "datasets"
    """Folder of the repository that holds the export's ``manifest.json``."""
    revision: str = "main"
    endpoint: str | None = None
    """Address of the Hub; None takes huggingface_hub's own setting."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"sp[0-9]{1,6}", self.variant):
            raise ConfigError(f"variant '{self.variant}': write sp and a size, such as sp1024")
        check_fields(self, NOT_NEGATIVE, "shards")
        if self.endpoint is not None and not re.fullmatch(r"https?://[^\s/]+\S*", self.endpoint):
            raise ConfigError(f"endpoint '{self.endpoint}': write an address like https://host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Files that a download left in a directory."""

    directory: Path
    commit: str
    """The repository's commit, which every file is of."""
    tokenizer: Path
    val: tuple[Path, ...]
    train: tuple[Path, ...]


def download_fineweb(
    output_dir: str | Path, config: DownloadConfig | None = None, progress: Progress = silent
) -> Download:
    """Fetch the tokenizer, all validation shards and the first train shards into `output_dir`.

    A file that is there and has the published hash is kept. The tokenizer becomes
    ``tokenizer.model``, as `tokenize_files` names it.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        DataError: the Hub cannot be reached or lacks a file, a hash differs, or a shard is
            malformed. Files that are whole stay, so that the same call goes on.
    """
    config = config or DownloadConfig()
    hub = _Hub(config)
    output = Path(output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        return _download(hub, output, config, progress)
    except OSError as error:
        raise DataError(f"{output}: cannot write: {error.strerror or error}") from error


def _download(hub: "_Hub", output: Path, config: DownloadConfig, progress: Progress) -> Download:
    # the first answer names the commit; everything else is asked of that one
    manifest = output / EXPORT_MANIFEST
    hub.fetch(f"{config.root}/manifest.json", manifest)
    dataset, val_shards, model_path = _read_plan(manifest, config)
    hub.fetch(f"{config.root}/{model_path}", output / TOKENIZER)
    tokenizer = Tokenizer.load(output / TOKENIZER)
    names = [f"fineweb_val_{number:06d}.bin" for number in range(val_shards)]
    names += [f"fineweb_train_{number:06d}.bin" for number in range(config.shards)]
    for done, name in enumerate(names):
        progress("download (shards)", done, len(names))
        hub.fetch(f"{config.root}/datasets/{dataset}/{name}", output / name)
        Shard.open(output / name, tokenizer.vocab)
    progress("download (shards)", len(names), len(names))
    paths = tuple(output / name for name in names)
    val, train = paths[:val_shards], paths[val_shards:]
    return Download(
        directory=output, commit=hub.revision, tokenizer=tokenizer.path, val=val, train=train
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
    if config.shards > train_shards:
        raise DataError(
            f"{config.repo} has {train_shards} train shards of {config.variant}, "
            f"fewer than the {config.shards} asked for"
        )
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
