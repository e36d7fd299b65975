"""A tokenizer of transformers -> the keys of a GGUF file that say its tokens and how text is cut.

Byte-level BPE is GGUF's ``gpt2``; BPE over characters, as SentencePiece has it, its ``llama``; a
Unigram model its ``t5``.
"""

import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptpack.errors import ConfigError
from gptpack.families.transformers.texts import MAIN, TextTokenizer

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    WORDS + r"\p{N}{1,3}" + REST: "llama-bpe",
    WORDS + r"\p{N}" + REST: "qwen2",
}
"""Expression that cuts text before byte-level BPE -> llama.cpp's name of it."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, as GGUF numbers them."""


def add_words(writer: Any, tokenizer: TextTokenizer | None, config: Any, rows: int) -> list[str]:
    """Write the tokenizer for an embedding of `rows`; returns what other programs may do otherwise.

    Raises:
        ConfigError: it is neither BPE nor Unigram, or has tokens beyond the embedding.
    """
    writer.add_vocab_size(rows)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return ["the file brings no tokenizer, so that the GGUF has none either"]
    state = json.loads(tokenizer.backend.to_str())
    kind, pieces = state["model"]["type"], tokenizer.backend.get_vocab(with_added_tokens=True)
    if kind not in ("BPE", "Unigram"):
        raise ConfigError(f"a tokenizer of the kind {kind} is not written to GGUF")
    if tokenizer.vocab > rows:
        raise ConfigError(f"{tokenizer.vocab:,} tokens, but the embedding has {rows:,} rows")
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [UNUSED] * rows
    byte_level = any(part["type"] == "ByteLevel" for part in _parts(state["pre_tokenizer"]))
    for piece, token in pieces.items():
        tokens[token] = piece
        is_byte = piece.startswith("<0x") and len(piece) == 6 and not byte_level
        types[token] = BYTE if is_byte else NORMAL
    for token, added in tokenizer.backend.get_added_tokens_decoder().items():
        types[token] = CONTROL if added.special else USER_DEFINED
    notes = []
    if byte_level:
        writer.add_tokenizer_model("gpt2")
        split = _split(state["pre_tokenizer"])
        writer.add_tokenizer_pre(split or "default")
        if split is None:
            notes.append("llama.cpp has no name for how the tokenizer cuts text: taken as default")
    else:
        writer.add_tokenizer_model("llama" if kind == "BPE" else "t5")
        writer.add_token_scores(_scores(state["model"], tokens))
        unknown = state["model"].get("unk_token", state["model"].get("unk_id"))
        unknown = pieces.get(unknown) if isinstance(unknown, str) else unknown
        if unknown is not None:
            types[unknown] = UNKNOWN
        _add_spaces(writer, state)
        if kind == "Unigram" and state["model"].get("byte_fallback"):
            notes.append("llama.cpp has no bytes for what a Unigram model's pieces cannot spell")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, tokenizer, state, config, rows)
    return notes


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, sequences taken apart."""
    for step in (value or {}).get("normalizers") or (value or {}).get("pretokenizers") or [value]:
        if step is value and value is not None:
            yield value
        elif step is not None:
            yield from _parts(step)


def _split(pre_tokenizer: Any) -> str | None:
    """llama.cpp's name of how text is cut before byte-level BPE; None if it has none."""
    *before, last = _parts(pre_tokenizer)
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    kinds = [part["type"] for part in before]
    if last.get("use_regex", True):
        digits = kinds == ["Digits"] and before[0]["individual_digits"]
        return "smollm" if digits else None if kinds else "gpt-2"
    return SPLITS.get(before[0]["pattern"].get("Regex", "")) if kinds == ["Split"] else None


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """A score for each token: a Unigram's own; else the higher, the earlier BPE merges to it."""
    if model["type"] == "Unigram":
        scores = [float(score) for _, score in model["vocab"]]
        return scores + [0.0] * (len(tokens) - len(scores))
    first: dict[str, int] = {}
    for place, merge in enumerate(model["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        first.setdefault("".join(pair), place)
    return [-float(first.get(token, len(model["merges"]))) for token in tokens]


def _add_spaces(writer: Any, state: Mapping[str, Any]) -> None:
    """Write what SentencePiece does with spaces and characters before it looks for pieces."""
    normalizers, cutters = _parts(state["normalizer"]), _parts(state["pre_tokenizer"])
    steps = [*normalizers, *cutters]
    puts = any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )
    writer.add_add_space_prefix(puts)
    for step in steps:
        if step["type"] == "Precompiled":
            writer.add_precompiled_charsmap(base64.b64decode(step["precompiled_charsmap"]))
        if step["type"] == "Replace" and step["pattern"].get("Regex") == " {2,}":
            writer.add_remove_extra_whitespaces(True)


def _add_special(
    writer: Any, tokenizer: TextTokenizer, state: Mapping[str, Any], config: Any, rows: int
) -> None:
    """Write merges, the tokens with a task, and the chat template, as the package gguf finds them.

    The package reads them from a folder. What is put before a text it would guess from the
    post-processor; the tokenizer itself was asked.
    """
    import gguf

    with tempfile.TemporaryDirectory(prefix="gptpack-") as name:
        folder = Path(name)
        for file, content in tokenizer.files.items():
            (folder / file).write_bytes(content)
        asked = {**state, "post_processor": None}
        (folder / MAIN).write_text(json.dumps(asked), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
        merges = "merges" in state["model"]
        special = gguf.SpecialVocab(folder, load_merges=merges, n_vocab=rows)
    special.add_special_token["bos"] = tokenizer.begins_with is not None
    special.add_to_gguf(writer, quiet=True)
