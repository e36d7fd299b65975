"""What a submission's train_gpt.py runs: its artifact -> bits per byte, printed as a log.

`gptpack.contest.script` makes one file of this module and all that it needs, so it does without
click and rich, and prints. The lines are the contest's where the contest has them;
`gptpack.runs.logs` reads them back.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptpack.errors import GptpackError
from gptpack.evaluation.result import Score
from gptpack.evaluation.scoring import score_model
from gptpack.evaluation.text import Text
from gptpack.evaluation.windows import plan_windows
from gptpack.jobs.load import Loaded, load_packed
from gptpack.ranks import Ranks, ranks
from gptpack.version import VERSION


def main(script: str, *, artifact: str, stride: int = 0) -> None:
    """Evaluate as the command line says and print the log; an error ends the process.

    Args:
        script: the file that runs, whose bytes count.
        artifact: name of the artifact that stands beside it.
        stride: stride of the sliding window by default; 0 for none.
    """
    options = _parser(Path(script).with_name(artifact), stride).parse_args()
    try:
        with ranks(options.device) as here:
            loaded = load_packed(options.artifact, here.device)
            result, losses = _evaluate(options, loaded, here)
            if here.main:
                _print(result, Path(script), loaded)
                if options.json:
                    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
                    Path(options.json).write_text(text, encoding="utf-8")
                if options.losses:
                    np.save(options.losses, losses)
    except GptpackError as error:
        print(f"{Path(script).name}: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def _parser(artifact: Path, stride: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Decode the artifact and measure its bits per byte. Nothing is fetched or "
        "sent. Runs under torchrun as well."
    )
    environment = os.environ
    parser.add_argument("--artifact", type=Path, default=artifact, help="default: %(default)s")
    parser.add_argument(
        "--data",
        type=Path,
        default=environment.get("DATA_PATH", "data"),
        help="folder of validation shards; default: DATA_PATH, or data",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=environment.get("TOKENIZER_PATH"),
        help="SentencePiece model; default: TOKENIZER_PATH, or that in the folder",
    )
    parser.add_argument(
        "--stride", type=int, default=stride, help="of the sliding window; 0: none; %(default)s"
    )
    parser.add_argument("--limit-tokens", type=int, default=0, help="score the first so many")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--losses", help="write each target's nats to this file (.npy)")
    return parser


def _evaluate(
    options: argparse.Namespace, loaded: Loaded, here: Ranks
) -> tuple[dict[str, Any], Any]:
    """All figures as JSON has them, and the nats of each target of the last pass."""
    began = time.perf_counter() - sum(loaded.seconds.values())
    seconds = dict(loaded.seconds)
    context = loaded.runnable().config.context
    text = Text.load(
        options.data,
        vocab=loaded.runnable().config.vocab,
        tokenizer=options.tokenizer,
        sha256=loaded.tokenizer_identity.sha256 if loaded.tokenizer_identity else None,
        limit_tokens=options.limit_tokens,
    )
    passes: dict[str, int | None] = {"plain": None}
    if options.stride:
        passes["sliding"] = options.stride
    targets = {
        name: plan_windows(
            len(text.tokens), context=context, stride=step, limit_tokens=options.limit_tokens
        ).targets
        for name, step in passes.items()
    }
    audited = text.audited_bytes(targets.values())
    scores: dict[str, Score] = {}
    for name, step in passes.items():
        scores[name] = score_model(
            loaded.runnable(),
            text.tokens,
            text.token_bytes,
            context=context,
            stride=step,
            audited_bytes=audited[targets[name]],
            limit_tokens=options.limit_tokens,
            device=here.device,
            per_token=bool(options.losses),
        )
        seconds[name] = scores[name].seconds
    seconds["all"] = time.perf_counter() - began
    last = list(scores.values())[-1]
    cuda = here.device.type == "cuda"
    result = {
        "parameters": sum(parameter.numel() for parameter in loaded.runnable().parameters()),
        "weights_sha256": loaded.weights_sha256,
        "adaptation": "none",
        "scores": {name: score.to_dict() for name, score in scores.items()},
        "seconds": seconds,
        "device": torch.cuda.get_device_name(here.device) if cuda else "cpu",
        "ranks": here.world,
    }
    return result, last.losses


def _print(result: dict[str, Any], script: Path, loaded: Loaded) -> None:
    """Print the log, one figure on each line."""
    assert loaded.path is not None
    code_bytes = script.stat().st_size
    print(
        f"gptpack:{VERSION} python:{platform.python_version()} torch:{torch.__version__} "
        f"device:{result['device']} ranks:{result['ranks']}"
    )
    print(f"artifact:{loaded.path.name} sha256:{loaded.sha256}")
    print(f"model_params:{result['parameters']}")
    print(f"Serialized model: {loaded.file_bytes} bytes")
    print(f"Code size: {code_bytes} bytes")
    print(f"Total submission size: {loaded.file_bytes + code_bytes} bytes")
    print(f"adaptation:{result['adaptation']}")
    for name, score in result["scores"].items():
        print(
            f"final_{name}_exact val_loss:{score['nats_per_token']:.8f} "
            f"val_bpb:{score['bpb']:.8f} tokens:{score['tokens']} bytes:{score['bytes']} "
            f"context:{score['context']} stride:{score['stride']} "
            f"eval_time:{1000 * score['seconds']:.0f}ms"
        )
    phases = " ".join(f"{name}:{spent:.2f}s" for name, spent in result["seconds"].items())
    print(f"eval_seconds {phases}")
