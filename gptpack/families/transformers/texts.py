"""Tokenizer files -> text to tokens and back, with the bytes of text that each token stands for.

The tokenizer is the model's own, as transformers makes it of its files. Text is tokenized as a
person wrote it: nothing is added, and what looks like a special token is text.
"""

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptpack.errors import AccountingError, TokenizerError
from gptpack.families.transformers.library import quiet
from gptpack.values import TokenizerIdentity

MAIN = "tokenizer.json"
FILES = (
    MAIN,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files that a tokenizer consists of, the first of them all that text needs."""
OLDER = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
"""Names of the first file of tokenizers that are not kept in `MAIN`."""
PLACEHOLDER = "gptpack"
"""Message that shows where a chat template puts what a person says."""

Ids = npt.NDArray[np.int64]


class TextTokenizer:
    """A tokenizer of transformers; `files` are those that it was made of."""

    def __init__(self, tokenizer: Any, files: Mapping[str, bytes]) -> None:
        self.tokenizer = tokenizer
        self.files = dict(files)
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

    def identity(self, vocab: int, bos: int) -> TokenizerIdentity:
        """What the header of a packed file says of it, for a model of `vocab` tokens."""
        digest = hashlib.sha256(self.files[MAIN]).hexdigest()
        return TokenizerIdentity(sha256=digest, vocab=min(self.vocab, vocab), bos=bos)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The tokens of each of `texts`, with none before and none after."""
        found = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(each.ids, np.int64) for each in found]

    def encode_with_bytes(self, text: str) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The tokens of `text`, and how many of its UTF-8 bytes each stands for.

        The pieces must spell the text, byte for byte. A tokenizer that normalises is charged by
        its tokens' places in what was written. A space that it puts in front is not charged.

        Raises:
            AccountingError: neither holds.
        """
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
            spell = _byte_level() if '"ByteLevel"' in state else None
            added = {i for i, _ in self.backend.get_added_tokens_decoder().items()}
            found = [b""] * self.vocab
            for piece, token in self.backend.get_vocab(with_added_tokens=True).items():
                found[token] = piece.encode() if token in added else _spelled(piece, spell)
            self._pieces = found
        return self._pieces

    def chat_start(self) -> Ids | None:
        """The tokens before what a person says first, by the chat template; None without one."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        messages = [{"role": "user", "content": PLACEHOLDER}]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template is a program of its author's, and may not like this
            return None
        before, found, _ = text.partition(PLACEHOLDER)
        if not found:
            return None
        self.backend.encode_special_tokens = False
        ids = self.backend.encode(before, add_special_tokens=False).ids
        self.backend.encode_special_tokens = True
        return np.array(ids, np.int64) if ids else None


def read_tokenizer(path: Path) -> tuple[TextTokenizer | None, dict[str, bytes]]:
    """The tokenizer of a Hugging Face folder or a GGUF file, and the files that it consists of.

    Raises:
        TokenizerError: the library cannot read it.
    """
    if path.is_dir():
        if not any((path / name).is_file() for name in (MAIN, *OLDER)):
            return None, {}
        arguments = {"pretrained_model_name_or_path": str(path)}
    else:
        arguments = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = _loaded(path, arguments)
    if path.is_dir() and (path / MAIN).is_file():
        files = {n: (path / n).read_bytes() for n in FILES if (path / n).is_file()}
    else:
        with tempfile.TemporaryDirectory(prefix="gptpack-") as folder:
            tokenizer.save_pretrained(folder)
            files = {n: f.read_bytes() for n in FILES if (f := Path(folder) / n).is_file()}
    if MAIN not in files:
        raise TokenizerError(f"{path}: its tokenizer cannot be kept as {MAIN}; convert it first")
    return TextTokenizer(tokenizer, files), files


def tokenizer_of(files: Mapping[str, bytes]) -> TextTokenizer | None:
    """The tokenizer that is among the files of a packed model; None without one.

    Raises:
        TokenizerError: the library cannot read it.
    """
    kept = {name: files[name] for name in FILES if name in files}
    if MAIN not in kept:
        return None
    with tempfile.TemporaryDirectory(prefix="gptpack-") as folder:
        for name, content in kept.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer = _loaded(Path(MAIN), {"pretrained_model_name_or_path": folder})
    return TextTokenizer(tokenizer, kept)


def _loaded(path: Path, arguments: Mapping[str, Any]) -> Any:
    with quiet() as library:
        try:
            found = library.AutoTokenizer.from_pretrained(
                **arguments, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library's errors are of many kinds
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise TokenizerError(
                f"{path}: transformers cannot load its tokenizer: {ascii(said[0])[1:-1]:.300}"
            ) from error
    if getattr(found, "backend_tokenizer", None) is None:
        raise TokenizerError(
            f"{path}: a tokenizer in Python; needed one of the library tokenizers, {MAIN}"
        )
    return found


def _spelled(piece: str, byte_of: Mapping[str, int] | None) -> bytes:
    """The bytes of a piece of a byte-level vocabulary, or of one that marks spaces by U+2581."""
    if byte_of is not None:
        if all(character in byte_of for character in piece):
            return bytes(byte_of[character] for character in piece)
        return piece.encode()
    if match := re.fullmatch("<0x([0-9A-F]{2})>", piece):
        return bytes([int(match[1], 16)])
    return piece.replace("\u2581", " ").encode()


def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table).

    Printable characters of Latin-1 stand for themselves; the other bytes, in order, for those from
    U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    found = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    return found | {chr(0x100 + place): byte for place, byte in enumerate(rest)}
