"""Packed files and limits -> the gate's result; bits per byte are measured where that is asked."""

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptpack.errors import ConfigError, MissingDependencyError
from gptpack.escape import plain
from gptpack.gate.check import Measure
from gptpack.gate.check import check as look
from gptpack.gate.limits import SAMPLE_TOKENS, CheckConfig, Limits, expanded
from gptpack.gate.outcomes import Bpb, Result
from gptpack.progress import Progress, silent
from gptpack.values import check_idle

if TYPE_CHECKING:
    from gptpack.evaluation.result import Evaluation


def check(
    files: str | Path | Sequence[str | Path] | CheckConfig,
    *,
    budget: str | int = "",
    code: Sequence[str | Path] = (),
    max_bpb: float = math.inf,
    max_bpb_rise: float = math.inf,
    max_bytes_rise: str | int = "",
    baseline: str | Path | None = None,
    prove: bool = False,
    data: str | Path = "",
    text: str | Path | Sequence[str | Path] = (),
    tokenizer: str | Path = "",
    eval_tokens: int = SAMPLE_TOKENS,
    stride: int = 0,
    progress: Progress = silent,
) -> Result:
    """Hold packed files to limits on their bytes and their bits per byte.

    A limit that is not kept is no error: the result says what failed, and why. Existence, format,
    every checksum and the bytes are always checked, which needs no torch.

        >>> result = gptpack.check("model.gptpack", budget="16MB")
        >>> result.passed, result.artifacts[0].total_bytes <= 16_000_000
        (True, True)

    Args:
        files: path of a packed file, which may hold wildcards, or several of them; or a
            `CheckConfig`, which has limits of its own.
        budget: most bytes of a file and its code, such as ``16MB``; by default what a file names.
        code: files whose bytes count into the budget.
        max_bpb: most bits per byte, as measured with `prove`, else as the packer recorded them.
        max_bpb_rise: most bits per byte above the baseline.
        max_bytes_rise: most bytes above the baseline, such as ``10KB``.
        baseline: report (JSON) of an earlier check, or a packed file.
        prove: measure bits per byte in a fresh process on the CPU, for which there must be `data`
            or `text`.
        data: folder of validation shards.
        text: files of text, of models that bring their tokenizer; see `evaluate`.
        tokenizer: its file; by default the one in `data`.
        eval_tokens: targets to score, the first ones; 0 scores all.
        stride: tokens by which a sliding window moves; 0 scores whole contexts.
        progress: called before each file is scored.

    Raises:
        ConfigError: limits make no sense, the baseline cannot be read, or there is nothing to
            measure on.
        MissingDependencyError: `prove` without torch.
        InternalError: the process that measures crashed.
    """
    limits: dict[str, Any] = {
        "budget": "" if budget is None else str(budget),
        "code": _names(code),
        "max_bpb": max_bpb,
        "max_bpb_rise": max_bpb_rise,
        "max_bytes_rise": "" if max_bytes_rise is None else str(max_bytes_rise),
        "data": str(data or ""),
        "text": _names(text),
        "tokenizer": str(tokenizer or ""),
        "eval_tokens": eval_tokens,
        "stride": stride,
    }
    if isinstance(files, CheckConfig):
        config = files
        if Limits(path="*", **limits) != Limits(path="*"):
            raise ConfigError("check: a CheckConfig has its own limits; set them there")
    else:
        scored = {"data": data, "text": text, "tokenizer": tokenizer, "stride": stride}
        check_idle("without --bpb", not prove, **scored, eval_tokens=eval_tokens != SAMPLE_TOKENS)
        paths = [files] if isinstance(files, str | Path) else files
        config = CheckConfig(artifacts=tuple(Limits(path=str(path), **limits) for path in paths))
    return look(
        config,
        baseline=None if baseline is None else Path(baseline),
        measure=_measure(config, progress) if prove else None,
    )


def _names(paths: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    return tuple(map(str, [paths] if isinstance(paths, str | Path) else paths))


def _measure(config: CheckConfig, progress: Progress) -> Measure:
    """A function that measures one file's bits per byte in a process of its own, on the CPU."""
    if without := [limits.label for limits in expanded(config) if not limits.sample]:
        raise ConfigError(
            f"{without[0]}: no text to measure bits per byte on; give --data with shards, or "
            "--text for a Hugging Face model; in the table of limits data or text"
        )
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            "measuring bits per byte (--bpb) needs torch, which is not installed; pip install "
            "gptpack with its dependencies, or check what the packer recorded"
        )
    from gptpack.jobs.fresh import evaluate_in_fresh_process

    def measure(path: Path, limits: Limits) -> Bpb:
        tokens = f"{limits.eval_tokens:,}" if limits.eval_tokens else "all"
        progress(plain(f"{limits.label}: scoring {tokens} tokens of {limits.sample}"), 0, 0)
        return _bpb(
            evaluate_in_fresh_process(
                path,
                config.folder / limits.data if limits.data else None,
                text=[config.folder / name for name in limits.text],
                tokenizer=config.folder / limits.tokenizer if limits.tokenizer else None,
                stride=limits.stride or None,
                eval_tokens=limits.eval_tokens,
                device="cpu",
                quiet=True,
            )
        )

    return measure


def _bpb(found: "Evaluation") -> Bpb:
    """The figure that counts of an evaluation."""
    score = found.best
    shards = " ".join(shard["sha256"] for shard in found.shards)
    return Bpb(
        value=score.bpb,
        source="measured",
        tokens=score.tokens,
        context=score.context,
        stride=score.stride,
        text_sha256=hashlib.sha256(shards.encode()).hexdigest(),
    )
