"""`gptpack pack`: a checkpoint -> one file that fits the budget, proved before it gets its name."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from gptpack.artifact.layout import MAGIC
from gptpack.atomic import check_target
from gptpack.cli.console import note, print_json, progress_bars
from gptpack.cli.models import load_told
from gptpack.cli.options import COUNT, DEVICE, POSITIVE, SEED, Finite
from gptpack.cli.pack_report import print_report, quality, report_of
from gptpack.codec.sections import codec_names
from gptpack.jobs.pack import Job, Request, code_size, identity_of
from gptpack.jobs.proof import Proof, check_proof

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--budget", help="Most bytes, such as 16MB or 16MiB.")
@click.option("--bits", type=POSITIVE, help="Instead: most coded bits a weight on a grid may take.")
@click.option("--step", type=POSITIVE, help="Instead: this step (delta), whatever it takes.")
@click.option("--output", "-o", type=PATH, help="[default: the checkpoint's name, .gptpack]")
@click.option("--data", type=PATH, help="Folder of shards: train calibrates, val proves.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model. [default: that in --data]")
@click.option("--model", help="Recipe (file or name) whose [model] a bare state dict has.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="METHOD, or PATTERN=METHOD for tensors by name; repeatable. int8, gptq-int4 to gptq-int8, "
    "gptq-uniform, gptq-trellis, float16. [default: gptq-trellis]",
)
@click.option(
    "--step-factor",
    "step_factors",
    multiple=True,
    metavar="PATTERN=FACTOR",
    help="Steps of matching matrices, as a multiple of what equal slope says; repeatable.",
)
@click.option("--states", default=256, show_default=True, help="Of the trellis: 4 to 256.")
@click.option(
    "--tune",
    type=click.Choice(["none", "floats", "deep"]),
    default="none",
    show_default=True,
    help="Train what is not coded, on training text and against the unpacked model: after coding, "
    "or layer by layer.",
)
@click.option(
    "--tune-labels",
    type=Finite(min=0, max=1),
    default=0.0,
    show_default=True,
    help="Share of the text itself, beside the unpacked model, in what --tune aims at; above 0 it "
    "trains on, for better or worse.",
)
@click.option(
    "--tune-seconds",
    type=POSITIVE,
    help="Most seconds of --tune, after the first search; otherwise it goes by steps.",
)
@click.option(
    "--calibration",
    type=click.Choice(["shards", "self", "random"]),
    help="Text for the Hessians. [default: shards if --data has train, else self]",
)
@click.option(
    "--calibration-tokens", type=COUNT, default=0, help="0: 524,288 on CUDA, 65,536 on CPU."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the calibration text.")
@click.option("--strict", is_flag=True, help="A tensor that falls back to int8 is an error.")
@click.option("--code", type=PATH, multiple=True, help="File whose bytes count too; repeatable.")
@click.option("--codec", multiple=True, help="raw, zlib, zstd, lzma, range, brotli; repeatable.")
@click.option(
    "--eval-tokens", type=COUNT, default=0, help="Prove on the first so many targets; 0: all."
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Also measure a sliding window that moves by so many.",
)
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--plan", is_flag=True, help="Say what would be done, write nothing.")
@click.option(
    "--curve",
    type=PATH,
    help="Write bytes, predicted and measured bpb at several steps to this CSV, and a plot beside "
    "it; no file is packed.",
)
@click.option(
    "--curve-bits",
    default="4,3.5,3,2.5,2",
    show_default=True,
    help="About how many bits a weight the curve's points have; the first is searched.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    checkpoint: Path,
    budget: str | None,
    bits: float | None,
    step: float | None,
    output: Path | None,
    data: Path | None,
    tokenizer: Path | None,
    model: str | None,
    methods: tuple[str, ...],
    step_factors: tuple[str, ...],
    states: int,
    tune: str,
    tune_labels: float,
    tune_seconds: float | None,
    calibration: str | None,
    calibration_tokens: int,
    seed: int,
    strict: bool,
    code: tuple[Path, ...],
    codec: tuple[str, ...],
    eval_tokens: int,
    stride: int | None,
    device: str,
    plan: bool,
    curve: Path | None,
    curve_bits: str,
    as_json: bool,
) -> None:
    """Pack a CHECKPOINT into one file that is never a byte over the budget.

    With --data the file is reloaded in a fresh process and its bits per byte are measured, beside
    those of the checkpoint, before it gets its name. Files given by --code count into the budget.
    Hessians are kept beside the checkpoint and used again. Runs under torchrun as well:
    calibration and tuning are shared among the ranks.

    \b
    Examples:
      gptpack pack runs/a/checkpoint.pt --budget 16MB --data shards/
      gptpack pack checkpoint.pt --budget 8MB --data shards/ --tune deep
      gptpack pack checkpoint.pt --budget 8MB --data shards/ --tune floats --tune-seconds 10
      gptpack pack checkpoint.pt --budget 16MB --method int8 --code train.py --data shards/
      gptpack pack checkpoint.pt --budget 16MB --step-factor 'blocks.0.*=0.7' --data shards/
      gptpack pack checkpoint.pt --curve curve.csv --data shards/
      gptpack pack final_model.pt --model golf-1060 --tokenizer tok.model --budget 16MiB
    """
    from gptpack.artifact.writer import write_atomic
    from gptpack.cli.pack_curve import parse_bits, write_curve
    from gptpack.data.shards import file_sha256
    from gptpack.errors import ConfigError
    from gptpack.packing.config import PackConfig
    from gptpack.packing.packer import UNLIMITED, take_apart
    from gptpack.ranks import ranks
    from gptpack.values import parse_size

    _check_one_of(budget, bits, step, curve)
    if (plan and curve) or (tune == "none" and tune_seconds):
        raise ConfigError("--plan writes no --curve, and --tune-seconds goes with --tune")
    target = _beside(checkpoint) if output is None else output
    _check_writes(target, curve, plotted=data is not None, plan=plan)
    points = parse_bits(curve_bits)
    limits = {
        "budget_bytes": parse_size(budget) if budget is not None else UNLIMITED,
        "code_bytes": sum(code_size(path) for path in code),
    }
    config = PackConfig(
        methods=_methods(methods),
        step_factors=_factors(step_factors),
        states=states,
        strict=strict,
        codecs=codec_names(codec or PackConfig().codecs),
    )
    seconds, began = dict[str, float](), time.perf_counter()
    loaded = load_told(checkpoint, model)
    config.check_names(loaded.weights)
    check_proof(
        None if plan else data,
        loaded.model,
        stride=stride if curve is None else None,
        limit_tokens=eval_tokens,
    )
    identity = identity_of(loaded, tokenizer, data)
    provenance = {"checkpoint_sha256": file_sha256(checkpoint), "step": loaded.step}
    request = Request(
        data=data,
        source=calibration,
        tokens=calibration_tokens,
        seed=seed,
        tune=tune,
        labels=tune_labels,
        tune_seconds=tune_seconds or 0.0,
        cache=None if plan else checkpoint.parent,
    )
    with (
        ranks(device) as here,
        progress_bars(quiet=as_json or not here.main) as progress,
        Proof(
            checkpoint,
            data if here.main and not plan else None,
            curve.with_suffix(".gptpack") if curve is not None else target,
            model=model,
            stride=stride if curve is None else None,
            tokenizer=tokenizer,
            limit_tokens=eval_tokens,
            device=device,
            early=here.device.type == "cuda",
        ) as proof,
        ThreadPoolExecutor(1) as background,
    ):
        job = Job(loaded, request, here, progress, background)
        if config.calibrated:
            provenance |= job.calibrate()
            seconds["calibrate"] = time.perf_counter() - began
            began = time.perf_counter()
        packer = take_apart(
            loaded,
            identity,
            config,
            job.sensitivities,
            **limits,
            provenance=provenance,
            proved=data is not None,
            progress=progress,
        )
        if curve is not None:
            write_curve(curve, job, packer, proof, points, as_json=as_json)
            return
        packed = job.pack(packer, delta=step, bits=bits)
        seconds["pack"] = time.perf_counter() - began
        if not here.main:
            return
        file = packed.file()
        began = time.perf_counter()
        scores = proof.of(file, progress=progress)
        if scores:
            seconds["prove"] = time.perf_counter() - began
            file = packed.file(quality(scores))
    if not plan:
        write_atomic(target, file)
    for remark in packed.notes:
        note(remark)
    report = report_of(packed, file, None if plan else target)
    report |= {"seconds": seconds, **scores}
    print_json(report) if as_json else print_report(report)


def _check_one_of(*sizes: object) -> None:
    from gptpack.errors import ConfigError

    if sum(given is not None for given in sizes) != 1:
        raise ConfigError(
            "give one of --budget, such as --budget 16MB, --bits, --step, and --curve"
        )


def _beside(checkpoint: Path) -> Path:
    """The name of its file where none is given."""
    from gptpack.errors import ConfigError

    if not checkpoint.name:
        raise ConfigError(f"{checkpoint} is a directory; name a checkpoint in it")
    return checkpoint.with_suffix(".gptpack")


def _check_writes(target: Path, curve: Path | None, *, plotted: bool, plan: bool) -> None:
    from gptpack.cli.pack_curve import check_curve

    if curve is not None:
        check_curve(curve, plotted=plotted)
    elif not plan:
        check_target(target, "packed file", MAGIC)


def _methods(options: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(pattern, method) pairs, the one for all tensors first."""
    from gptpack.errors import ConfigError

    pairs = [tuple(option.split("=", 1)) if "=" in option else ("*", option) for option in options]
    if sum(pattern == "*" for pattern, _ in pairs) > 1:
        raise ConfigError("--method names several methods for all tensors; write PATTERN=METHOD")
    if not any(pattern == "*" for pattern, _ in pairs):
        pairs.insert(0, ("*", "gptq-trellis"))
    return tuple(sorted(((p, m) for p, m in pairs), key=lambda pair: pair[0] != "*"))


def _factors(options: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    from gptpack.errors import ConfigError

    pairs = []
    for option in options:
        pattern, found, text = option.rpartition("=")
        try:
            pairs.append((pattern, float(text)))
        except ValueError:
            found = ""
        if not found:
            raise ConfigError(
                f"--step-factor {option}: write PATTERN=FACTOR, such as blocks.0.*=0.7"
            )
    return tuple(pairs)
