"""What each method of packing costs on a checkpoint: coded bits per matrix weight against bpb.

    python benchmarks/pack_quality.py --checkpoint final_model.pt --model golf-1060 \
        --data shards --output quality

Matrices of the blocks are packed; embeddings and vectors stay in floats, so that the figures
compare the methods and nothing else. Bits count everything a method stores for its matrices:
codes, scales, tables. Two methods of the field stand beside ours: int6 with a clip search, and
int6 with a step of K sigma / 31 (`--sigma`), each coded by lzma as the field does, and by our
context coder. Prints a table; writes each row to OUTPUT.csv as it is measured, and OUTPUT.png
where matplotlib is there. What OUTPUT.csv holds already is kept and not measured again.

`--deltas` sets the deltas of the grids, `--floats` and `--deep` those that are also tuned, once for
each of `--labels`, the weight of the text's cross entropy in tuning.
"""

import argparse
import copy
import csv
import itertools
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gptpack.calibration.kept import Kept
from gptpack.calibration.text import calibrate, calibration_text, shard_windows
from gptpack.data.splits import split_tokens
from gptpack.evaluation.scoring import score_model
from gptpack.evaluation.text import Text
from gptpack.families.language_model import LanguageModel
from gptpack.jobs.load import load
from gptpack.packing.apart import take_apart
from gptpack.packing.config import PackConfig
from gptpack.packing.packer import CodedFile, Packer
from gptpack.packing.progressive import ProgressiveConfig, pack_progressively
from gptpack.packing.search import pack_to_budget
from gptpack.quant.allocation import Matrix
from gptpack.quant.factor import factorize
from gptpack.quant.gptq import quantize_uniform
from gptpack.quant.types import PackedTensor, dequantize
from gptpack.ranks import Ranks, pick_device
from gptpack.values import TokenizerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    method: str
    delta: float
    bits: float
    penalty_bpb: float
    predicted_bpb: float
    seconds: float


class Bench:
    """A checkpoint, its calibration, and the evaluation that every method shares."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.ranks = Ranks(0, 1, pick_device(options.device))
        loaded = load(options.checkpoint, model=options.model, device=self.ranks.device)
        self.model = loaded.runnable()
        self.model.use_attention("auto")
        self.student = copy.deepcopy(self.model)
        vocab, context = self.model.config.vocab, self.model.config.context
        self.text = Text.load(options.data, vocab=vocab, limit_tokens=options.eval_tokens)
        self.eval_tokens = options.eval_tokens
        shards = split_tokens(options.data, "train", vocab)
        total = sum(len(shard) // context for shard in shards)
        began = time.perf_counter()
        tokens = options.calibration_tokens
        windows = calibration_text(self.model, "shards", shards, tokens=tokens)
        self.sensitivities = calibrate(
            self.model, windows, self.ranks, kept=Kept(folder=options.checkpoint.parent)
        ).sensitivities
        print(f"calibration on {windows.numel():,} tokens: {time.perf_counter() - began:.1f} s")
        self.tuning = shard_windows(shards, windows=min(8192, total), context=context, seed=1)
        self.bpb, self.bpb_per_nat = self.score(self.model)
        print(f"unquantized: {self.bpb:.5f} bpb")
        self.csv = Path(f"{options.output}.csv")
        self.rows = read_rows(self.csv)

    def known(self, method: str, delta: float = 0.0) -> bool:
        return any(r.method == method and math.isclose(r.delta, delta) for r in self.rows)

    def score(self, model: LanguageModel) -> tuple[float, float]:
        """Plain bits per byte, and what one nat per token is in them."""
        score = score_model(
            model,
            self.text.tokens,
            self.text.token_bytes,
            context=self.model.config.context,
            limit_tokens=self.eval_tokens,
            device=self.ranks.device,
        )
        return score.bpb, score.bpb / score.nats_per_token

    def packer(self, method: str, states: int) -> Packer:
        return take_apart(
            self.model,
            TokenizerIdentity(sha256="0" * 64, vocab=self.model.config.vocab, bos=1),
            PackConfig(methods=(("*", "float16"), ("blocks.*", method)), states=max(states, 4)),
            self.sensitivities,
        )

    def add(
        self, name: str, packed: CodedFile, tensors: dict[str, torch.Tensor], began: float
    ) -> None:
        """Measure a packed model whose values are `tensors`."""
        seconds = time.perf_counter() - began
        self.student.load_state_dict(tensors)
        row = Row(
            method=name,
            delta=packed.record.delta or 0.0,
            bits=self.bits(packed),
            penalty_bpb=self.score(self.student)[0] - self.bpb,
            predicted_bpb=packed.predicted_nats * self.bpb_per_nat,
            seconds=seconds,
        )
        self.show(row)

    def show(self, row: Row) -> None:
        self.rows.append(row)
        with self.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(Row.__slots__)
            writer.writerow([getattr(row, key) for key in Row.__slots__])
        print(
            f"{row.method:36}  {row.delta:9.3g}  {row.bits:6.3f}  {row.penalty_bpb:+9.5f}  "
            f"{row.predicted_bpb:+9.5f}  {row.seconds:7.1f}",
            flush=True,
        )

    def add_coded(self, name: str, packer: Packer) -> None:
        """Measure matrices whose codes do not depend on a step, under two coders."""
        for codec in ("lzma", "range"):
            began = time.perf_counter()
            packer.config = replace(packer.config, codecs=("zlib", codec))
            packed = pack_to_budget(packer)
            if codec == "lzma":
                self.add(f"{name}, lzma", packed, values(packer, packed), began)
                continue
            row = replace(self.rows[-1], method=f"{name}, context coder", bits=self.bits(packed))
            self.show(replace(row, seconds=time.perf_counter() - began))

    def sigma_rows(self, k: float) -> Packer:
        """Row steps of ``k sigma / 31``, codes within +-31: what the contest's later records do."""
        packer = self.packer("float16", 1)
        for name in [n for n in packer.order if n in self.sensitivities and "blocks." in n]:
            weight = self.model.state_dict()[name].cpu().numpy()
            factor = factorize(self.sensitivities[name].hessian, damp=0.02, name=name)
            scale_R = (k * weight.std(axis=1) / 31).astype(np.float16)
            rounding = quantize_uniform(weight, factor, scale_R, clip=31)
            packer.fixed[name] = PackedTensor(
                name=name,
                shape=weight.shape,
                method="int8",
                arrays={"codes": rounding.points.astype(np.int8), "scales": scale_R},
            )
        return packer

    @staticmethod
    def bits(packed: CodedFile) -> float:
        """Stored bits per weight of the blocks' matrices."""
        coded = [e for e in packed.encoded.tensors if e.name.startswith("blocks.")]
        weights = sum(e.numel for e in coded if len(e.shape) == 2 and e.numel >= 4096)
        prefixes = ("int8.", "uniform.", "trellis.")
        stored = sum(s.stored_bytes for s in packed.encoded.sections if s.name.startswith(prefixes))
        return 8 * stored / weights


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(**{key: text if key == "method" else float(text) for key, text in row.items()})
            for row in csv.DictReader(file)
        ]


def values(packer: Packer, packed: CodedFile) -> dict[str, torch.Tensor]:
    """The float32 weights that a packed model decodes to."""
    from gptpack.artifact.reader import decode_artifact

    artifact = decode_artifact(packed.assemble())
    return {t.name: torch.from_numpy(dequantize(t).copy()) for t in artifact.tensors}


def bound(matrices: list[Matrix], bpb_per_nat: float) -> list[tuple[float, float]]:
    """(bits, bpb) of the rate-distortion function: Gaussian rows, reverse water-filling."""
    variances = []
    for matrix in matrices:
        eigenvalues = np.linalg.eigvalsh(np.asarray(matrix.hessian, np.float64)).clip(1e-12)
        power_R = matrix.row_weight * np.mean(matrix.weight.astype(np.float64) ** 2, axis=1)
        variances.append(np.outer(power_R, eigenvalues).astype(np.float32).ravel())
    every = np.concatenate(variances)
    points = []
    for level in np.logspace(-11.5, -8, 15):
        rate = float(np.maximum(0, 0.5 * np.log2(every / level)).mean())
        loss = float(np.minimum(every, level).sum(dtype=np.float64)) / 2
        points.append((rate, loss * bpb_per_nat))
    return points


NAMES = {
    "uniform": "rounding, Hessian and entropy coder",
    "trellis, 256 states": "gptpack (trellis of 256 states)",
    "... tuned layer by layer": "gptpack --tune deep",
    "GPTQ int6, clip search, lzma": "GPTQ in 6 bits, clip search, lzma",
    "GPTQ int6, 12.85 sigma / 31, lzma": "contest records: GPTQ in 6 bits, lzma",
}
"""Methods that the plot shows, and what it calls them."""


def plot(rows: list[Row], limit: list[tuple[float, float]], weights: int, path: Path) -> None:
    """Bytes of `weights` weights against rise, a labelled line or point for each of `NAMES`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    shown = {
        label: sorted((r.bits, r.penalty_bpb) for r in rows if r.method == method)
        for method, label in NAMES.items()
    }
    shown["what no coder can beat (predicted)"] = [p for p in limit if 2.0 < p[0] < 4.5]
    for place, (label, points) in enumerate(shown.items()):
        if not points:
            continue
        sizes = [bits * weights / 8e6 for bits, _ in points]
        rises = [rise for _, rise in points]
        bound = label.startswith("what")
        color = "black" if bound else f"C{place}"
        axes.plot(sizes, rises, "--" if bound else "o-", color=color)
        # lines are named at their small end, but the bound, which is below all, at its large one;
        # what is tuned lies left of the lines
        left = label.endswith("deep")
        at = sizes.index(max(sizes)) if bound else 0
        axes.annotate(
            label,
            (sizes[at], rises[at]),
            xytext=(-8 if left else 8, -10 if bound else 4),
            ha="right" if left else "left",
            textcoords="offset points",
            color=color,
        )
    axes.set(xlabel="coded matrices, MB", ylabel="rise in bits per byte (log)", yscale="log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    largest = max(row.bits for row in rows if row.method in NAMES) * weights / 8e6
    axes.set_xlim(0.2 * largest, 1.4 * largest)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--model", help="recipe whose [model] a bare state dict has")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("quality"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--eval-tokens", type=int, default=0)
    parser.add_argument("--calibration-tokens", type=int, default=524288)
    parser.add_argument("--deltas", type=float, nargs="*", default=[6e-5, 1e-4, 1.5e-4])
    parser.add_argument("--clipped", type=int, nargs="*", default=[5, 6])
    parser.add_argument("--floats", type=float, nargs="*", default=[1.5e-4])
    parser.add_argument("--sigma", type=float, nargs="*", default=[12.85])
    parser.add_argument("--labels", type=float, nargs="*", default=[0.0, 0.5])
    parser.add_argument("--deep", type=float, nargs="*", default=[6e-5, 1.5e-4])
    options = parser.parse_args()
    if options.checkpoint is None or options.data is None:
        print("pack_quality: give --checkpoint and --data; see --help")
        return
    bench = Bench(options)
    print(f"{'method':36}  {'delta':>9}  {'bits':>6}  {'penalty':>9}  {'predicted':>9}  {'s':>7}")
    for bits in options.clipped:
        name = f"GPTQ int{bits}, clip search"
        if not bench.known(f"{name}, lzma"):
            bench.add_coded(name, bench.packer(f"gptq-int{bits}", 1))
    for k in options.sigma:
        name = f"GPTQ int6, {k:g} sigma / 31"
        if not bench.known(f"{name}, lzma"):
            bench.add_coded(name, bench.sigma_rows(k))
    matrices: list[Matrix] = []
    for name, method, states in (
        ("uniform", "gptq-uniform", 1),
        ("trellis, 8 states", "gptq-trellis", 8),
        ("trellis, 256 states", "gptq-trellis", 256),
    ):
        packer = bench.packer(method, states)
        matrices = packer.matrices
        for delta in options.deltas:
            if bench.known(name, delta):
                continue
            began = time.perf_counter()
            packed = pack_to_budget(packer, delta=delta)
            bench.add(name, packed, values(packer, packed), began)
    for name, deltas, by_layer in (
        ("... then floats tuned", options.floats, False),
        ("... tuned layer by layer", options.deep, True),
    ):
        for labels, delta in itertools.product(options.labels, deltas):
            full = f"{name}, labels {labels:g}" if labels else name
            if bench.known(full, delta):
                continue
            began = time.perf_counter()
            packer = bench.packer("gptq-trellis", 256)
            packed = pack_progressively(
                packer,
                bench.model,
                bench.tuning,
                bench.ranks,
                bench.sensitivities,
                ProgressiveConfig(by_layer=by_layer, labels=labels),
                delta=delta,
            )
            bench.add(full, packed, values(packer, packed), began)
    try:
        weights = sum(matrix.weight.size for matrix in matrices)
        limit = bound(matrices, bench.bpb_per_nat)
        plot(bench.rows, limit, weights, Path(f"{options.output}.png"))
    except ImportError:
        print("no plot: matplotlib is missing (pip install 'gptpack[plot]')")


if __name__ == "__main__":
    main()
