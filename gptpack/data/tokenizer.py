"""A SentencePiece model's file -> a tokenizer; documents -> such a file."""

import hashlib
import heapq
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import sentencepiece

from gptpack.atomic import replacing
from gptpack.errors import ConfigError, DataError, TokenizerError
from gptpack.inputs import read_input
from gptpack.progress import Progress, silent
from gptpack.values import MAX_VOCAB, NOT_NEGATIVE, TokenizerIdentity, check_fields

Normalization = Literal["nmt_nfkc", "nfkc", "identity"]

SPACE = "\u2581"
"""Character that stands for a space in SentencePiece's pieces."""
SENTENCE_BYTES = 4096
"""Bytes, at most, of the pieces that documents are cut into for the trainer, which skips longer
ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """A SentencePiece model: text <-> token ids. `load` makes one."""

    path: Path
    processor: Any
    vocab: int
    bos: int
    unknown: int
    """Id of the piece for characters that the vocabulary lacks."""
    sha256: str
    """SHA-256 of the model file's bytes, in hex."""

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a model file.

        Raises:
            TokenizerError: not a SentencePiece model, no BOS piece, or more than `MAX_VOCAB`
                pieces.
        """
        path = Path(path)
        try:
            model = read_input(path)
        except OSError as error:
            raise TokenizerError(f"{path}: cannot read: {error.strerror or error}") from error
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            vocab = processor.vocab_size() if model else 0
        except (RuntimeError, OSError, ValueError) as error:
            raise TokenizerError(
                f"{path}: not a SentencePiece model ({len(model)} bytes)"
            ) from error
        if vocab < 1:
            raise TokenizerError(f"{path}: not a SentencePiece model ({len(model)} bytes)")
        if vocab > MAX_VOCAB:
            raise TokenizerError(f"{path}: {vocab} pieces; gptpack takes {MAX_VOCAB} at most")
        with _spelling(path):
            processor.id_to_piece(list(range(vocab)))
        bos = processor.bos_id()
        if bos < 0:
            raise TokenizerError(f"{path}: no BOS piece; documents need one (train with bos_id=1)")
        digest = hashlib.sha256(model).hexdigest()
        return cls(path, processor, vocab, bos, processor.unk_id(), digest)

    @property
    def identity(self) -> TokenizerIdentity:
        """The tokenizer's identity as checkpoints and packed files record it."""
        return TokenizerIdentity(sha256=self.sha256, vocab=self.vocab, bos=self.bos)

    def content(self) -> bytes:
        """The model file as it is now."""
        return read_input(self.path)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        ids: list[int] = self.processor.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        ids: list[list[int]] = self.processor.encode(list(texts), num_threads=1)
        return ids

    def normalized_bytes(self, texts: Sequence[str]) -> list[int]:
        """UTF-8 bytes of each text as the model normalises it, without a space that it adds."""
        with _spelling(self.path):
            probe, *normalized = self.processor.normalize(["a", *texts])
        # the space that SentencePiece adds at one end by default is no text
        added = probe.startswith(SPACE) or probe.endswith(SPACE)
        # SPACE stands for one byte and has three.
        return [
            len(text.encode()) - 2 * text.count(SPACE) - (added and bool(text))
            for text in normalized
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text that `ids` stand for."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """`decode` of each list; raises TokenizerError for an id that the model lacks."""
        try:
            with _spelling(self.path):
                ids = [list(row) for row in batch]
                texts: list[str] = self.processor.decode(ids, num_threads=1)
        except IndexError as error:
            raise TokenizerError(
                f"{self.path}: {error}; the model has ids below {self.vocab}"
            ) from error
        return texts

    def piece(self, token: int) -> str:
        """The vocabulary's entry for `token`; a space is U+2581."""
        piece: str = self.processor.id_to_piece(token)
        return piece


class _Known(Protocol):
    """A tokenizer as its file has it, of whatever kind."""

    @property
    def sha256(self) -> str: ...
    @property
    def vocab(self) -> int: ...


def check_tokenizer(path: Path, found: _Known, *, sha256: str | None, vocab: int) -> None:
    """Check that the tokenizer of the file `path` is a model's.

    Args:
        sha256: hash of the tokenizer that the model was trained with; None takes any.
        vocab: vocabulary of the model, which may exceed the tokenizer's.

    Raises:
        TokenizerError: it has another hash, or too many pieces.
    """
    if sha256 is not None and found.sha256 != sha256:
        raise TokenizerError(
            f"{path}: sha256 {found.sha256}, but the model was trained with the tokenizer "
            f"{sha256}; give that one with --tokenizer, and its shards where there are any"
        )
    if found.vocab > vocab:
        raise TokenizerError(
            f"{path}: {found.vocab:,} pieces, but the model has a vocabulary of {vocab:,}; "
            "give the tokenizer that the model was trained with"
        )


@contextmanager
def _spelling(path: Path) -> Iterator[None]:
    """Refuse a model whose pieces or rules spell something that is no text."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: a damaged SentencePiece model: it spells bytes that are not UTF-8 "
            f"({error.reason})"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Settings of a tokenizer's training; all defaults but `normalization` are the contest's."""

    vocab: int = 1024
    normalization: Normalization = "identity"
    """`nmt_nfkc` turns line ends into spaces; `identity` leaves every character as it is."""
    keep_whitespace: bool = False
    """Keeps runs of spaces, and spaces at either end. A document that begins with a space then
    fails the byte audit: the contest's rule does not count that space."""
    sample_bytes: int = 100_000_000
    """Bytes of text to train on, about, in documents chosen by hash; 0 takes all documents."""
    character_coverage: float = 0.999

    def __post_init__(self) -> None:
        if not 1 <= self.vocab <= MAX_VOCAB:
            raise ConfigError(f"vocab={self.vocab} must lie in 1..{MAX_VOCAB}")
        if self.normalization not in get_args(Normalization):
            raise ConfigError(
                f"normalization={self.normalization!r} must be one of {get_args(Normalization)}"
            )
        check_fields(self, NOT_NEGATIVE, "sample_bytes")
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(f"character_coverage={self.character_coverage} must lie in (0, 1]")


def train_tokenizer(
    documents: Iterable[str],
    output: str | Path,
    config: TokenizerConfig | None = None,
    progress: Progress = silent,
) -> Tokenizer:
    """Train a byte-fallback BPE model, write it to `output`, and load it.

    The same documents and configuration give the same bytes. Pad, BOS, EOS and unknown are 0 to 3.

    Raises:
        TokenizerError: no text, or SentencePiece refuses (for example a vocabulary smaller than
            256 bytes + 4 + the characters of the text).
    """
    config = config or TokenizerConfig()
    output = Path(output)
    sample = _sample(documents, config.sample_bytes, progress)
    sentences = [piece for document in sample for piece in _sentences(document)]
    if not sentences:
        raise TokenizerError("the sources hold no text to train a tokenizer on")
    progress("train tokenizer", 0, 0)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name=config.normalization,
            remove_extra_whitespaces=not config.keep_whitespace,
            add_dummy_prefix=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            hard_vocab_limit=False,
            max_sentence_length=2 * SENTENCE_BYTES,
            num_threads=1,
            minloglevel=4,
        )
    except (RuntimeError, OSError) as error:
        if small := re.search(r"(\d+) vs (\d+)\. Increase vocab_size", str(error)):
            raise TokenizerError(
                f"{output}: {small[1]} pieces are too few for this text, which takes at least "
                f"{small[2]}: 256 bytes, 4 signs, and its characters; give a larger --vocab"
            ) from error
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
        raise TokenizerError(f"{output}: SentencePiece cannot train: {reason}") from error
    with replacing(output, DataError) as file:
        file.write(model.getvalue())
    return Tokenizer.load(output)


def _sample(documents: Iterable[str], sample_bytes: int, progress: Progress) -> list[str]:
    """The documents with the smallest hashes, up to `sample_bytes`, in their own order.

    Which ones does not depend on where they stand, so a corpus sorted by source is sampled evenly.
    """
    heap: list[tuple[int, int, str]] = []
    held = read = 0
    for index, document in enumerate(documents):
        data = document.encode()
        read += len(data)
        held += len(data)
        key = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
        heapq.heappush(heap, (-key, -index, document))
        while sample_bytes and held > sample_bytes and len(heap) > 1:
            held -= len(heapq.heappop(heap)[2].encode())
        if index % 256 == 0:
            progress("read text", read, 0)
    return [document for _, _, document in sorted(heap, key=lambda entry: -entry[1])]


def _sentences(document: str) -> Iterator[str]:
    """The document in pieces, cut at spaces or line ends where one is near."""
    # The trainer refuses NUL; byte fallback covers it.
    document = document.replace("\0", " ")
    limit = SENTENCE_BYTES // 4
    start = 0
    while start < len(document):
        stop = min(start + limit, len(document))
        if stop < len(document):
            space = max(document.rfind(" ", start, stop), document.rfind("\n", start, stop))
            stop = space if space > start else stop
        yield document[start:stop]
        start = stop
