"""A file of ranks -> a byte-level BPE, text <-> tokens, as GPT-2's is; tiktoken merges.

Ranks do not say how text is cut before its bytes are merged: it is cut by GPT-2's expression.
Nothing is downloaded; tiktoken is given the ranks that were read here.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gptpack.data.accounting import PieceBytes, tokenizer_kind
from gptpack.data.byte_tables import ByteVocabulary, load_vocabulary
from gptpack.data.rank_files import RANKS, ranks_file
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import MissingDependencyError, TokenizerError
from gptpack.values import MAX_VOCAB

PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""GPT-2's expression, possessive where that changes nothing: long runs then need no stack.
Radford et al. 2019, https://github.com/openai/gpt-2."""
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
"""Hash of GPT-2's ranks as tiktoken's file has them (``r50k_base.tiktoken``)."""


class BytePairs:
    """A byte-level BPE as a tokenizer; `load_tokenizer` makes one."""

    unknown = -1
    """Id of the piece for characters that the vocabulary lacks; there are none."""

    def __init__(self, vocabulary: ByteVocabulary) -> None:
        """Take a vocabulary of ranks.

        Raises:
            TokenizerError: it cannot encode any text: a byte is missing, or a token is there twice.
        """
        assert vocabulary.pieces is not None
        self.vocabulary, self.pieces = vocabulary, vocabulary.pieces
        self.path, self.sha256 = vocabulary.path, vocabulary.sha256
        self.vocab, self.bos = vocabulary.vocab, vocabulary.bos
        self._ranks = {piece: rank for rank, piece in enumerate(self.pieces)}
        if len(self._ranks) < len(self.pieces):
            raise TokenizerError(f"{self.path}: two ranks have one token; text has no one encoding")
        if missing := [byte for byte in range(256) if bytes([byte]) not in self._ranks]:
            raise TokenizerError(f"{self.path}: no token is byte {missing[0]}; ranks need all 256")

    @property
    def token_bytes(self) -> PieceBytes:
        """Bytes of each token."""
        return self.vocabulary.table

    def content(self) -> bytes:
        """The file that stands beside shards, whose hash is `sha256`."""
        return ranks_file(self.pieces)

    @cached_property
    def _encoding(self) -> Any:
        try:
            import tiktoken
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.path}: text becomes tokens of these ranks by tiktoken; install it with: "
                "pip install 'gptpack[gpt2]'"
            ) from error
        return tiktoken.Encoding(
            self.path.name, pat_str=PATTERN, mergeable_ranks=self._ranks, special_tokens={}
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS; what looks like a special token is text."""
        ids: list[int] = self._encoding.encode_ordinary(text)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def normalized_bytes(self, texts: Sequence[str]) -> list[int]:
        """UTF-8 bytes of each text: nothing is normalised."""
        return [len(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` spell; bytes that are part of no character become U+FFFD.

        Ids behind the ranks spell nothing: BOS, and what fills a model's vocabulary up.
        """
        spelled = b"".join(self.pieces[token] for token in ids if token < len(self.pieces))
        return spelled.decode(errors="replace")

    def piece(self, token: int) -> str:
        """The text of `token`; bytes that are none are written as ``<0xE2>``."""
        try:
            return self.pieces[token].decode() if token < len(self.pieces) else ""
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in self.pieces[token])


def load_tokenizer(path: str | Path) -> Tokenizer | BytePairs:
    """The tokenizer in a file: a SentencePiece model, or ranks.

    Raises:
        TokenizerError: it is neither, or malformed.
    """
    path = Path(path)
    kind = tokenizer_kind(path)
    if not kind:
        return Tokenizer.load(path)
    if kind not in RANKS:
        raise TokenizerError(
            f"{path}: a table of bytes, by which text cannot become tokens; give a SentencePiece "
            "model or ranks"
        )
    return BytePairs(load_vocabulary(path, vocab=MAX_VOCAB))
