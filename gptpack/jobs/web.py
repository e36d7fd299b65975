"""A packed file -> a static folder whose page runs its model, and fetches nothing from elsewhere.

The page's own files are those of `gptpack/site`, a link to ``web/site`` at the top of the project.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from gptpack.artifact.reader import Artifact, read_artifact
from gptpack.atomic import check_folder, check_writable, replacing_directory
from gptpack.errors import ConfigError, DataError, MissingDependencyError, TokenizerError
from gptpack.families.golf.config import ModelConfig
from gptpack.families.modules.config import ModuleConfig
from gptpack.progress import Progress, silent

SOURCES = Path(__file__).parent.parent / "site"
PAGE = (".css", ".dictionary", ".html", ".js", ".wasm")
"""Ends of the names of the page's files."""
MODEL, TOKENIZER, SITE = "model.gptpack", "tokenizer.model", "site.json"
TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Models of transformers that the page runs: those of ``web/site/llama.js``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMade:
    """A folder that was written."""

    page_bytes: int
    """Size of the page's own files, without the model and its tokenizer."""
    site_bytes: int
    """Size of all files."""
    notes: tuple[str, ...]
    """What the page does without, and why."""


def make_site(
    path: Path,
    output: Path,
    *,
    tokenizer: Path | None = None,
    licence: Path | None = None,
    title: str | None = None,
    progress: Progress = silent,
) -> SiteMade:
    """Write the page of the packed file at `path` to the folder `output`, in place of an older one.

    Args:
        tokenizer: the SentencePiece model of a golf file; others bring their tokenizer.
        licence: a text that the page shows as the model's licence, in place of the file's own.
        title: heading of the page; None takes the file's name.

    Raises:
        ArtifactError: the file is corrupt or hostile.
        ConfigError: the page cannot run this model, or something else stands at `output`.
        TokenizerError: there is no tokenizer, or it is not the model's.
        DataError: `output` cannot be written, or `licence` not be read.
    """
    check_folder(output, "site of gptpack", SITE, MODEL, TOKENIZER, *(f"*{end}" for end in PAGE))
    check_writable(output, DataError)
    progress("verify", 0, 0)
    artifact = read_artifact(path, verify_weights=True)
    _check_kind(artifact, path)
    words = _words(artifact, path, tokenizer)
    chat, notes = _chat(artifact)
    contents: dict[str, bytes] = {
        file.name: file.read_bytes() for file in SOURCES.iterdir() if file.suffix in PAGE
    }
    page_bytes = sum(map(len, contents.values()))
    contents |= {MODEL: path.read_bytes()} | ({} if words is None else {TOKENIZER: words})
    site = {
        "title": path.stem if title is None else title,
        "model": MODEL,
        "bytes": len(contents[MODEL]),
        "tokenizer": None if words is None else TOKENIZER,
        "chat": chat,
        "licence": None if licence is None else _text(licence),
        "files": sorted(name for name in contents if name not in (MODEL, TOKENIZER)),
    }
    # a page that was loaded before asks for its files again once this is another
    version = hashlib.sha256(json.dumps(site).encode())
    for name in sorted(contents):
        version.update(hashlib.sha256(contents[name]).digest())
    site["version"] = version.hexdigest()[:16]
    contents[SITE] = json.dumps(site, indent=1).encode()
    with replacing_directory(output) as stage:
        for name, content in contents.items():
            (stage / name).write_bytes(content)
    return SiteMade(
        page_bytes=page_bytes, site_bytes=sum(map(len, contents.values())), notes=tuple(notes)
    )


def _check_kind(artifact: Artifact, path: Path) -> None:
    """Raise the `ConfigError` of a model that the page cannot run."""
    model = artifact.header.model
    if isinstance(model, ModuleConfig):
        raise ConfigError(f"{path}: holds a module of its author's own code, which no page can run")
    if isinstance(model, ModelConfig):
        if model.architecture != "golf":
            raise ConfigError(
                f"{path}: has architecture={model.architecture}, which the page cannot run"
            )
        if model.parallel_lanes > 1:
            raise ConfigError(f"{path}: has parallel_lanes=2, which the page cannot run")
    elif model.model_type not in TYPES:
        raise ConfigError(
            f"{path}: of type {model.model_type}; the page runs golf and {', '.join(TYPES)}"
        )


def _words(artifact: Artifact, path: Path, tokenizer: Path | None) -> bytes | None:
    """The content of the tokenizer's file beside the model; None where the model brings its own."""
    header = artifact.header
    if not isinstance(header.model, ModelConfig):
        if "tokenizer.json" not in artifact.files:
            raise TokenizerError(f"{path}: brings no tokenizer.json, which a page needs")
        if tokenizer is not None:
            raise ConfigError(f"{path} brings its tokenizer; leave --tokenizer out")
        return None
    if tokenizer is None:
        raise TokenizerError(f"{path} brings no tokenizer; name its file with --tokenizer")
    from gptpack.data.tokenizer import Tokenizer

    found = Tokenizer.load(tokenizer)
    assert header.tokenizer is not None  # golf's files all name theirs
    if found.sha256 != header.tokenizer.sha256:
        raise TokenizerError(
            f"{tokenizer}: sha256 {found.sha256}, but the model was trained with "
            f"{header.tokenizer.sha256}; give that tokenizer"
        )
    return tokenizer.read_bytes()


def _chat(artifact: Artifact) -> tuple[tuple[str, str] | None, list[str]]:
    """What a chat template puts before and after a message, and why that is not known."""
    files = artifact.files
    settings = files.get("tokenizer_config.json", b"")
    if "chat_template.jinja" not in files and b'"chat_template"' not in settings:
        return None, []
    from gptpack.families.transformers.texts import tokenizer_of

    try:
        found = tokenizer_of(files)
    except MissingDependencyError as error:
        return None, [f"no chat template: {error}; the page goes on from texts instead"]
    return (None if found is None else found.chat_frame()), []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read it as text: {error}") from error
