"""The text that is scored: tokens, the bytes they stand for, and the audit of both."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gptpack.data.accounting import TokenBytes, audit
from gptpack.data.manifest import TOKENIZER
from gptpack.data.shards import find_shards, load_tokens
from gptpack.data.tokenizer import Tokenizer
from gptpack.errors import TokenizerError


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Validation tokens and their tokenizer; `load` makes one."""

    tokens: npt.NDArray[np.uint16]
    tokenizer: Tokenizer
    token_bytes: TokenBytes
    shards: tuple[Path, ...]

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        vocab: int,
        tokenizer: Path | None = None,
        sha256: str | None = None,
        limit_tokens: int = 0,
    ) -> "Text":
        """The validation shards of `directory`.

        Args:
            vocab: of the model; at least the tokenizer's.
            tokenizer: its model file; None is ``tokenizer.model`` beside the shards.
            sha256: what the tokenizer's file must hash to; None takes any.
            limit_tokens: read no more than the first so many targets need; 0 reads all.

        Raises:
            TokenizerError: no tokenizer, or not that of the model.
            ShardError: no shards, or malformed ones, or ids that are not below `vocab`.
        """
        path = tokenizer or directory / TOKENIZER
        if tokenizer is None and not path.exists():
            raise TokenizerError(
                f"{path}: no tokenizer beside the shards; name its file with --tokenizer"
            )
        loaded = Tokenizer.load(path)
        if sha256 is not None and loaded.sha256 != sha256:
            raise TokenizerError(
                f"{path}: sha256 {loaded.sha256}, but the model was trained with the tokenizer "
                f"{sha256}; give that one with --tokenizer, and its shards"
            )
        if loaded.vocab > vocab:
            raise TokenizerError(
                f"{path}: {loaded.vocab:,} pieces, but the model has a vocabulary of {vocab:,}; "
                "give the tokenizer that the model was trained with"
            )
        limit = limit_tokens + 1 if limit_tokens else 0
        return cls(
            tokens=load_tokens(directory, "val", vocab, limit),
            tokenizer=loaded,
            token_bytes=TokenBytes.from_tokenizer(loaded, vocab),
            shards=tuple(find_shards(directory, "val")),
        )

    def audited_bytes(self, targets: Iterable[int]) -> dict[int, int]:
        """Bytes of the first n targets for each n of `targets`, the longest text audited.

        The others are what is left of it without the bytes of the targets after theirs.

        Raises:
            AccountingError: the tokens' bytes are not those of the text they decode to.
        """
        counts = sorted(targets)
        longest = counts[-1]
        found = audit(self.token_bytes, self.tokenizer, self.tokens[: longest + 1])
        rest = {
            count: self.token_bytes.total(
                self.tokens[count:longest], self.tokens[count + 1 : longest + 1]
            )
            for count in counts
        }
        return {count: found - rest[count] for count in counts}
