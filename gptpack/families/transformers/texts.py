"""Tokenizer files -> text to tokens and back, with the bytes of text that each token stands for.

The tokenizer is the model's own, as transformers makes it of its files. Text is tokenized as a
person wrote it: nothing is added, and what looks like a special token is text.
"""

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.byte_level import byte_level
from gptpack.errors import AccountingError, TokenizerError
from gptpack.escape import first_line
from gptpack.families.transformers.library import quiet
from gptpack.inputs import read_input
from gptpack.values import MAX_VOCAB, TokenizerIdentity

MAIN, SETTINGS = "tokenizer.json", "tokenizer_config.json"
FILES = (
    MAIN,
    SETTINGS,
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files that a tokenizer consists of, the first of them all that text needs."""
OLDER = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
"""Names of the first file of tokenizers that are not kept in `MAIN`."""
ELSEWHERE = ("_file", "_files", "_path")
"""Ends of keys of ``tokenizer_config.json`` that name files, which are not followed."""
PLACEHOLDER = "gptpack"
"""Message that shows where a chat template puts what a person says."""

Ids = npt.NDArray[np.int64]


class TextTokenizer:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.files: Mapping[str, bytes] = {}
        """Name and content of the files that it was made of."""
        self.backend: Any = tokenizer.backend_tokenizer
        first = list(tokenizer("").input_ids)
        # text is what a person wrote, even where it looks like a special token
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        self.begins_with: int | None = first[0] if first else None
        """Token that the tokenizer itself puts before a text; None where it puts none."""
        self._pieces: list[bytes] | None = None

    @property
    def vocab(self) -> int:
        """One more than the largest token."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @property
    def sha256(self) -> str:
        """SHA-256 of the file `MAIN`, in hexadecimal."""
        return hashlib.sha256(self.files[MAIN]).hexdigest()

    def identity(self, vocab: int, bos: int) -> TokenizerIdentity:
        """What the header of a packed file says of it, for a model of `vocab` tokens."""
        return TokenizerIdentity(sha256=self.sha256, vocab=min(self.vocab, vocab), bos=bos)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The tokens of each of `texts`, with none before and none after."""
        with _refusing("its tokenizer cannot encode a text"):
            found = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(each.ids, np.int64) for each in found]

    def encode_with_bytes(self, text: str) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The tokens of `text`, and how many of its UTF-8 bytes each stands for.

        The pieces must spell the text, byte for byte. A tokenizer that normalises is charged by
        its tokens' places in what was written. A space that it puts in front is not charged.

        Raises:
            AccountingError: neither holds.
        """
        with _refusing("its tokenizer cannot encode a text"):
            encoded = self.backend.encode(text, add_special_tokens=False)
        ids = np.array(encoded.ids, np.int64)
        pieces = self.pieces()
        spelled = [pieces[token] for token in encoded.ids]
        each = np.array([len(piece) for piece in spelled], np.int64)
        written, joined = text.encode(), b"".join(spelled)
        if joined == written:
            return ids, each
        if joined == b" " + written and len(each):
            each[0] -= 1
            return ids, each
        ends = np.maximum.accumulate([0, *(end for _, end in encoded.offsets)])
        covered = int(ends[-1]) == len(text)
        if self.backend.normalizer is None or not covered:
            raise AccountingError(
                f"the tokens of this text spell {len(joined):,} bytes, but it has "
                f"{len(written):,}; bits per byte would be wrong"
            )
        at_character = np.concatenate(([0], np.cumsum([len(c.encode()) for c in text])))
        return ids, np.diff(at_character[ends])

    def decode(self, tokens: Ids) -> str:
        """The text of `tokens`, special ones left out, nothing tidied up."""
        found: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return found

    def pieces(self) -> list[bytes]:
        """The bytes that each token spells."""
        if self._pieces is None:
            state = self.backend.to_str()
            spell = byte_level() if '"ByteLevel"' in state else None
            added = {i for i, _ in self.backend.get_added_tokens_decoder().items()}
            found = [b""] * self.vocab
            for piece, token in self.backend.get_vocab(with_added_tokens=True).items():
                found[token] = piece.encode() if token in added else _spelled(piece, spell)
            self._pieces = found
        return self._pieces

    def chat_prompt(self, message: str) -> list[int] | None:
        """The tokens of a message in the chat template, up to the answer; None without one.

        Raises:
            TokenizerError: the template cannot take a message.
        """
        with _refusing("its chat template cannot take a message"):
            text = self._templated(message, add_generation_prompt=True)
        return None if text is None else self._with_special_tokens(text)

    def chat_start(self) -> list[int] | None:
        """The tokens before what a person says first, by the chat template; None without one."""
        try:
            text = self._templated(PLACEHOLDER)
        except Exception:  # a template is a program of its author's, and may not like this
            return None
        before, found, _ = (text or "").partition(PLACEHOLDER)
        return self._with_special_tokens(before) or None if found else None

    def chat_frame(self) -> tuple[str, str] | None:
        """What the chat template puts before and after a message; None where it shows neither."""
        try:
            text = self._templated(PLACEHOLDER, add_generation_prompt=True) or ""
        except Exception:  # a template is a program of its author's, and may not like this
            return None
        before, found, after = text.partition(PLACEHOLDER)
        return (before, after) if found else None

    def _templated(self, message: str, **settings: Any) -> str | None:
        """A message as the chat template puts it; None without a template."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        messages = [{"role": "user", "content": message}]
        found: str = self.tokenizer.apply_chat_template(messages, tokenize=False, **settings)
        return found

    def _with_special_tokens(self, text: str) -> list[int]:
        """The tokens of a template's text, in which special tokens are meant as such."""
        self.backend.encode_special_tokens = False
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        finally:
            self.backend.encode_special_tokens = True
        return ids


def read_tokenizer(path: Path) -> tuple[TextTokenizer | None, dict[str, bytes]]:
    """The tokenizer of a Hugging Face folder or a GGUF file, and the files that it consists of.

    Raises:
        TokenizerError: the library cannot read it.
    """
    if path.is_dir():
        if not any((path / name).is_file() for name in (MAIN, *OLDER)):
            return None, {}
        if (path / MAIN).is_file():
            files = {n: read_input(path / n) for n in FILES if (path / n).is_file()}
            return tokenizer_of(files, path), files
        arguments = {"pretrained_model_name_or_path": str(path)}
    else:
        arguments = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    found = _loaded(path, arguments)
    with tempfile.TemporaryDirectory(prefix="gptpack-") as folder:
        found.tokenizer.save_pretrained(folder)
        files = {n: f.read_bytes() for n in FILES if (f := Path(folder) / n).is_file()}
    if MAIN not in files:
        raise TokenizerError(f"{path}: its tokenizer cannot be kept as {MAIN}; convert it first")
    found.files = files
    return found, files


def tokenizer_of(files: Mapping[str, bytes], path: Path = Path(MAIN)) -> TextTokenizer | None:
    """The tokenizer that is among the files of a model; None without one.

    Args:
        path: place of the files, for messages.

    Raises:
        TokenizerError: the library cannot read it.
    """
    kept = {name: files[name] for name in FILES if name in files}
    if MAIN not in kept:
        return None
    _check(path, _object(path, MAIN, kept[MAIN]))
    settings = _object(path, SETTINGS, kept.get(SETTINGS, b"{}"))
    here = {k: v for k, v in settings.items() if k != "auto_map" and not k.endswith(ELSEWHERE)}
    with tempfile.TemporaryDirectory(prefix="gptpack-") as folder:
        for name, content in (kept | {SETTINGS: json.dumps(here).encode()}).items():
            (Path(folder) / name).write_bytes(content)
        found = _loaded(path, {"pretrained_model_name_or_path": folder})
    found.files = kept
    return found


def _object(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: its {name} is not JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path}: its {name} is {found!a:.40}, must be an object")
    return found


def _check(path: Path, values: dict[str, Any]) -> None:
    """Refuse a `MAIN` that makes its library, or us, take memory that such a file never needs."""
    model = values.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = vocab.values() if isinstance(vocab, dict) else ()
    if large := [token for token in ids if type(token) is int and token >= MAX_VOCAB]:
        raise TokenizerError(f"{path}: its {MAIN} has token {large[0]}, must be below {MAX_VOCAB}")
    # a compiled table begins with the size of its first part, which is allocated unseen
    for text in _charsmaps(values.get("normalizer")):
        try:
            table = base64.b64decode(text)
        except ValueError as error:
            raise TokenizerError(f"{path}: its {MAIN} has a charsmap not in base64") from error
        if not 4 <= 4 + int.from_bytes(table[:4], "little") <= len(table):
            raise TokenizerError(f"{path}: its {MAIN} has a charsmap that is cut short")


def _charsmaps(value: Any) -> Iterator[str]:
    """All compiled tables of a normalizer and those inside."""
    if isinstance(value, dict):
        if isinstance(found := value.get("precompiled_charsmap"), str):
            yield found
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _charsmaps(item)


def _loaded(path: Path, arguments: Mapping[str, Any]) -> TextTokenizer:
    with quiet() as library, _refusing(f"{path}: transformers cannot load its tokenizer"):
        found = library.AutoTokenizer.from_pretrained(
            **arguments, local_files_only=True, trust_remote_code=False
        )
        if getattr(found, "backend_tokenizer", None) is not None:
            return TextTokenizer(found)
    raise TokenizerError(
        f"{path}: a tokenizer in Python; needed one of the library tokenizers, {MAIN}"
    )


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever files provoke in the library into a `TokenizerError` of one line."""
    try:
        yield
    except BaseException as error:
        # the library's errors are of many kinds, and a panic of its Rust part is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {first_line(error)}") from error


def _spelled(piece: str, byte_of: Mapping[str, int] | None) -> bytes:
    """The bytes of a piece of a byte-level vocabulary, or of one that marks spaces by U+2581."""
    if byte_of is not None:
        if all(character in byte_of for character in piece):
            return bytes(byte_of[character] for character in piece)
        return piece.encode()
    if match := re.fullmatch("<0x([0-9A-F]{2})>", piece):
        return bytes([int(match[1], 16)])
    return piece.replace("\u2581", " ").encode()
