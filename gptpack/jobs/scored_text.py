"""Files of text, or shards, and a model -> what is scored, and what an evaluation says of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptpack.errors import ConfigError
from gptpack.evaluation.plain_text import PlainText
from gptpack.evaluation.text import Text
from gptpack.evaluation.windows import Indices, plan_windows
from gptpack.inputs import file_sha256
from gptpack.jobs.load import Loaded


def plain_text(
    loaded: Loaded, texts: Sequence[Path], limit_tokens: int, tokenizer: str | Path | None
) -> PlainText:
    """The text of files, by the tokenizer that came with the model."""
    if loaded.tokenizer is None or tokenizer is not None:
        raise ConfigError(
            f"{loaded.path}: text is scored by the tokenizer that comes with a Hugging Face model; "
            "this one needs --data with shards"
        )
    return PlainText.load(texts, loaded.tokenizer, limit_tokens)


def check_text(
    loaded: Loaded, texts: Sequence[Path], *, stride: int | None, limit_tokens: int
) -> None:
    """Check, before work is put into a model, that files of text can score it.

    Raises:
        GptpackError: the evaluation would fail; says why.
    """
    tokens = plain_text(loaded, texts, limit_tokens, None).tokens
    context = loaded.runnable().config.context
    if len(tokens) <= context and not 0 < limit_tokens < context:
        names = ", ".join(map(str, texts))
        raise ConfigError(
            f"--eval-text {names}: {len(tokens):,} tokens, fewer than the model's window of "
            f"{context:,} and one more; give more text"
        )
    for step in {None, stride}:
        plan_windows(len(tokens), context=context, stride=step, limit_tokens=limit_tokens)


def documents_of(text: Text | PlainText) -> Indices:
    """Positions at which documents begin; those of plain text are not told apart."""
    if not isinstance(text, Text):
        raise ConfigError("--documents masked needs shards, whose tokens say where documents begin")
    return text.documents


def described(loaded: Loaded, text: Text | PlainText, targets: int) -> dict[str, Any]:
    """What an evaluation says of its text and its tokenizer."""
    if not isinstance(text, Text):
        identity = loaded.tokenizer_identity
        assert identity is not None
        return {
            "tokenizer": {
                "path": str(loaded.path),
                "sha256": identity.sha256,
                "vocab": identity.vocab,
                "checked": True,
            },
            "accounting": {"kind": "text", "audited_against": text.accounting},
            "shards": tuple({"file": f.name, "sha256": file_sha256(f)} for f in text.files),
        }
    vocabulary = text.vocabulary
    return {
        "unknown_tokens": text.unknown_tokens(targets),
        "tokenizer": {
            "path": str(vocabulary.path),
            "sha256": vocabulary.sha256,
            "vocab": vocabulary.vocab,
            "checked": loaded.tokenizer_identity is not None,
        },
        "accounting": {
            "kind": text.accounting,
            "audited_against": str(text.source) if text.source else "what the tokens decode to",
            **text.stated,
        },
        "shards": tuple({"file": s.path.name, "sha256": s.sha256} for s in text.shards),
    }
