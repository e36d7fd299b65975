"""The contest's published FineWeb shards from the Hugging Face Hub: resumable, hash-checked.

Nothing else in gptpack reaches the network. No credentials are sent.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gptpack.data.manifest import TOKENIZER
from gptpack.data.shards import Shard, file_sha256
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import ConfigError, DataError, MissingDependencyError
from gptpack.progress import Progress, silent

EXPORT_MANIFEST = "export_manifest.json"
"""What the publisher's manifest is called here; ours is another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadConfig:
    """Which files of which export."""

    variant: str = "sp1024"
    """``sp`` and the size of the vocabulary."""
    shards: int = 1
    """Train shards, from the first; validation always comes whole."""
    repo: str = "willdepueoai/parameter-golf"
    root: str = "datasets"
    """Folder of the repository that holds the export's ``manifest.json``."""
    revision: str = "main"
    endpoint: str | None = None
    """Address of the Hub; None takes huggingface_hub's own setting."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"sp[0-9]{1,6}", self.variant):
            raise ConfigError(f"variant '{self.variant}': write sp and a size, such as sp1024")
        if self.shards < 0:
            raise ConfigError(f"shards={self.shards} must not be negative")
        if self.endpoint is not None and not re.fullmatch(r"https?://[^\s/]+\S*", self.endpoint):
            raise ConfigError(f"endpoint '{self.endpoint}': write an address like https://host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """What a download left behind."""

    directory: Path
    commit: str
    """Of the repository; every file is of this one."""
    tokenizer: Path
    val: tuple[Path, ...]
    train: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Published:
    """A file as the Hub describes it."""

    remote: str
    location: str
    size_bytes: int | None
    etag: str
    """SHA-256 of a large file; Git's SHA-1 of a small one."""

    def matches(self, path: Path) -> bool:
        if len(self.etag) == 64:
            return file_sha256(path) == self.etag
        data = path.read_bytes()
        blob = b"blob %d\0" % len(data) + data
        return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == self.etag


def download_fineweb(
    output_dir: str | Path, config: DownloadConfig | None = None, progress: Progress = silent
) -> Download:
    """Fetch the tokenizer, all validation shards and the first train shards into `output_dir`.

    A file that is there and has the published hash is kept; an interrupted one continues where it
    stopped. The tokenizer becomes ``tokenizer.model``, as `tokenize_files` names it.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        DataError: the Hub cannot be reached or lacks a file, a hash differs, or a shard is
            malformed. What arrived stays, so that the same call goes on.
    """
    config = config or DownloadConfig()
    hub = _Hub(config)
    output = Path(output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with hub.quiet():
            return _download(hub, output, config, progress)
    except OSError as error:
        raise DataError(f"{output}: cannot write: {error.strerror or error}") from error


def _download(hub: "_Hub", output: Path, config: DownloadConfig, progress: Progress) -> Download:
    # The first answer names the commit; everything else is asked of that one.
    manifest = output / EXPORT_MANIFEST
    hub.fetch(f"{config.root}/manifest.json", manifest, progress)
    plan = _read_plan(manifest, config)
    hub.fetch(f"{config.root}/{plan.model_path}", output / TOKENIZER, progress)
    tokenizer = Tokenizer.load(output / TOKENIZER)

    def shards(split: str, count: int) -> Iterator[Path]:
        for number in range(count):
            name = f"fineweb_{split}_{number:06d}.bin"
            hub.fetch(f"{config.root}/datasets/{plan.dataset}/{name}", output / name, progress)
            Shard.open(output / name, tokenizer.vocab)
            yield output / name

    val = tuple(shards("val", plan.val_shards))
    train = tuple(shards("train", config.shards))
    return Download(
        directory=output, commit=hub.revision, tokenizer=tokenizer.path, val=val, train=train
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    dataset: str
    val_shards: int
    model_path: str


def _read_plan(path: Path, config: DownloadConfig) -> _Plan:
    """What the publisher's manifest says of the variant."""
    dataset = f"fineweb10B_{config.variant}"
    try:
        values = json.loads(path.read_bytes())
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
    return _Plan(dataset, val_shards, model_path)


class _Hub:
    """The few calls of huggingface_hub that this needs, with its errors made ours.

    Its own `hf_hub_download` starts an interrupted file over again since version 1.
    """

    def __init__(self, config: DownloadConfig) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors, file_download, utils
        except ImportError as error:
            raise MissingDependencyError(
                "downloads need huggingface_hub; install it with: pip install 'gptpack[hub]'"
            ) from error
        self.revision = config.revision
        self._config = config
        self._url: Callable[..., str] = huggingface_hub.hf_hub_url
        self._metadata: Callable[..., Any] = huggingface_hub.get_hf_file_metadata
        self._get: Callable[..., None] = file_download.http_get
        self._utils: Any = utils
        # Its bases hold the root of the HTTP library's errors, be that httpx or requests.
        self._failures: tuple[type[Exception], ...] = (*errors.HfHubHTTPError.__bases__, OSError)
        self._invalid: type[Exception] = errors.HFValidationError

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """The library draws no bars of its own meanwhile."""
        if self._utils.are_progress_bars_disabled():
            yield
            return
        self._utils.disable_progress_bars()
        try:
            yield
        finally:
            self._utils.enable_progress_bars()

    def fetch(self, remote: str, path: Path, progress: Progress) -> None:
        """Make `path` the published file `remote`."""
        published = self._describe(remote)
        if path.is_file() and published.matches(path):
            return
        partial = path.with_name(f".{path.name}.{published.etag[:16]}.partial")
        with partial.open("ab") as file:
            self._continue(published, file, lambda done, total: progress(path.name, done, total))
        if not published.matches(partial):
            partial.unlink()
            raise DataError(
                f"{remote}: what arrived does not have the published hash {published.etag}; "
                "it was dropped, run again"
            )
        partial.replace(path)

    def _describe(self, remote: str) -> _Published:
        try:
            url = self._url(
                self._config.repo,
                remote,
                repo_type="dataset",
                revision=self.revision,
                endpoint=self._config.endpoint,
            )
            found = self._metadata(url, token=False)
        except self._invalid as error:
            raise ConfigError(f"repository '{self._config.repo}': {_first_line(error)}") from error
        except self._failures as error:
            raise DataError(f"{self._config.repo}/{remote}: {_first_line(error)}") from error
        etag = found.etag or ""
        if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag):
            raise DataError(
                f"{remote}: the Hub states no hash (ETag {etag!r}); it cannot be checked"
            )
        self.revision = found.commit_hash or self.revision
        return _Published(remote, found.location, found.size, etag)

    def _continue(
        self, published: _Published, file: BinaryIO, report: Callable[[int, int], None]
    ) -> None:
        size = published.size_bytes or 0
        done = file.seek(0, 2)
        if size and done > size:
            done = file.truncate(0)
        if size and done == size:
            return
        try:
            self._get(
                published.location,
                _Counted(file, lambda at: report(at, size)),
                resume_size=done,
                headers=self._utils.build_hf_headers(token=False),
                expected_size=published.size_bytes,
            )
        except self._failures as error:
            raise DataError(
                f"{published.remote}: the download stopped at {file.tell()} of {size} bytes "
                f"({_first_line(error)}); run again to go on from there"
            ) from error


class _Counted:
    """A file that says how far it is after each write."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file = file
        self._report = report

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._report(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
