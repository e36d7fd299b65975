"""What one tool makes of a Hugging Face folder, setting by setting; `peers.py` starts this.

    python benchmarks/peer_tools.py TOOL REQUEST.json ROWS.jsonl

A tool quantizes and saves as its own documentation says. What it saved is counted, its weights are
dequantized by its own code to float32, put into gptpack's wrapper of the transformers model, and
scored by `gptpack.evaluate`; nothing of a tool runs while a model is scored. A row is written as
soon as its setting is done, so that a crash takes no other setting with it.

Shape legend: R = outputs, C = inputs, V = vocabulary, N = positions.
"""

import argparse
import copy
import dataclasses
import gc
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptpack.artifact.front import decode_header
from gptpack.evaluation.plain_text import stream
from gptpack.families.transformers.model import TransformersModel
from gptpack.jobs.evaluate import evaluate
from gptpack.jobs.load import Loaded, load, load_packed

WINDOW = 2048
"""Tokens of a window of calibration; a model of fewer positions takes its own."""
GROUPS = (128, 64, 32)
"""Sizes of group, best first, of tools whose group must divide a layer's inputs."""
NOT_SHIPPED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "README.md",
    "*.csv",
    "*.log",
)
"""Names of files in a saved folder that are not counted: the tokenizer's, which are the same for
every tool, and what running the model does not need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What all tools are given; paths are strings, so that it travels as JSON."""

    folder: str
    """The Hugging Face folder, not quantized."""
    eval_text: tuple[str, ...]
    calibration_text: tuple[str, ...] = ()
    device: str = "cpu"
    limit_tokens: int = 0
    """Targets that are scored, the first ones; 0 scores all whole windows."""
    calibration_windows: int = 128
    """Windows that a tool with calibration sees, the first of the text."""
    iterations: int = 200
    """Steps of AutoRound for each block; 200 is its default."""
    gptpack: tuple[str, ...] = ()
    """Packed files."""
    gguf: str | None = None
    """The same model as a GGUF file of 16 or 32 bits, from which llama.cpp quantizes."""
    imatrix: str | None = None
    """Importance matrix for llama.cpp, by `llama-imatrix` on the calibration text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; None where it was not measured."""

    tool: str
    setting: str
    sample: str = "this run"
    """Text that `rise_bpb` was measured on, in words."""
    size_bytes: int | None = None
    """Bytes that must ship: weights and configuration as saved, without the tokenizer."""
    bits_per_parameter: float | None = None
    bpb: float | None = None
    rise_bpb: float | None = None
    """Bits per byte above the unquantized model's."""
    kl_mean_nats: float | None = None
    """Mean over positions of KL(unquantized || this)."""
    kl_median_nats: float | None = None
    kl_p99_nats: float | None = None
    same_top: float | None = None
    """Share of positions whose most likely token is the unquantized model's."""
    quantize_seconds: float | None = None
    """Time to quantize, with loading where a tool does both at once; without saving. GPTQModel
    compiles an extension when it first packs, 40 s on one core (2026-11-29)."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a tool made."""

    model: TransformersModel
    """Its weights, dequantized to float32."""
    size_bytes: int
    seconds: float | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What adapters share."""

    request: Request
    reference: Loaded
    """The unquantized model in float32."""
    folder: Path
    """Empty folder for what the tool saves."""

    @property
    def device(self) -> str:
        return self.request.device

    def windows(self) -> list[Tensor]:
        """Tokens ``[1, T]`` of the calibration windows, on the CPU."""
        assert self.reference.tokenizer is not None
        if not self.request.calibration_text:
            raise ValueError("this tool calibrates: give --calibration-text")
        length = min(WINDOW, self.reference.runnable().config.context)
        least = length * self.request.calibration_windows
        paths = [Path(path) for path in self.request.calibration_text]
        tokens = torch.from_numpy(
            stream(paths, self.reference.tokenizer, least, seed=0).astype("int64")[:least]
        )
        whole = len(tokens) // length * length
        return list(tokens[:whole].view(-1, 1, length))

    def group(self, largest: int = GROUPS[0]) -> int:
        """The best group size that divides the inputs of every layer.

        Raises:
            ValueError: none of `GROUPS` does.
        """
        model = self.reference.runnable()
        widths = {
            layer.module.weight.shape[1]
            for name, layer in model.layers().items()
            if name != model.head_name and isinstance(layer.module, nn.Linear)
        }
        fitting = [g for g in GROUPS if g <= largest and not any(w % g for w in widths)]
        if not fitting:
            raise ValueError(f"no group of {GROUPS} divides the layers' inputs {sorted(widths)}")
        return fitting[0]

    def original(self, dtype: Any = "auto") -> Any:
        """The unquantized model as transformers loads it, in the folder's own type."""
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(self.request.folder, dtype=dtype)
        return model.eval()

    def synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What `work` returns, and its seconds."""
        began = time.perf_counter()
        found = work()
        self.synchronize()
        return found, time.perf_counter() - began

    def restored(self, model: nn.Module, dequantized: Mapping[str, Tensor]) -> TransformersModel:
        """The reference with the weights of a tool's `model`.

        Args:
            dequantized: weight ``[R, C]`` of each quantized module by its path; all other
                parameters are taken as the tool's model holds them.

        Raises:
            ValueError: nothing was quantized.
        """
        from transformers.pytorch_utils import Conv1D

        if not dequantized:
            raise ValueError("the tool quantized no layer of this model")
        weights = {f"{path}.weight": value for path, value in dequantized.items()}
        for path, module in model.named_modules():
            for name, value in module.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                kept = value.T if isinstance(module, Conv1D) and value.ndim == 2 else value
                if path not in dequantized or name == "bias":
                    weights.setdefault(full, kept)
        return self.with_weights(weights)

    def with_weights(self, weights: Mapping[str, Tensor]) -> TransformersModel:
        """The reference with other `weights`, by the names in its own state.

        An output layer that the tool kept apart from the embedding is no longer tied to it.

        Raises:
            ValueError: a weight is missing, unknown, or of another shape.
        """
        like = self.reference.runnable()
        inner: Any = copy.deepcopy(like.module)
        head, tokens = inner.get_output_embeddings(), inner.get_input_embeddings()
        at = {id(module): path for path, module in inner.named_modules()}
        ours, theirs = f"{at[id(tokens)]}.weight", f"{at[id(head)]}.weight"
        values = {name: value.detach() for name, value in weights.items()}
        if head.weight is tokens.weight:
            values.setdefault(theirs, values[ours])
            if not torch.equal(values[theirs].cpu().float(), values[ours].cpu().float()):
                head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        state = inner.state_dict()
        named = {name for name, _ in inner.named_parameters(remove_duplicate=False)}
        missing, unknown = sorted(named - values.keys()), sorted(values.keys() - state.keys())
        if missing or unknown:
            raise ValueError(f"weights missing: {missing[:3]}, unknown: {unknown[:3]}")
        for name, value in values.items():
            if value.shape != state[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, needed {tuple(state[name].shape)}"
                )
            state[name].copy_(value)
        return TransformersModel(inner, like.config, like.transposed)


Adapter = Callable[[Context], Made]


def shipped_bytes(folder: Path) -> int:
    """Bytes of the files of a saved folder that must ship beside the tokenizer's."""
    return sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and not any(file.match(pattern) for pattern in NOT_SHIPPED)
    )


def hqq(bits: int) -> Adapter:
    def make(context: Context) -> Made:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
        from hqq.models.hf.base import AutoHQQHFModel

        model = context.original(torch.float16)
        config = BaseQuantizeConfig(nbits=bits, group_size=64)
        _, seconds = context.timed(
            lambda: AutoHQQHFModel.quantize_model(
                model, quant_config=config, compute_dtype=torch.float16, device=context.device
            )
        )
        AutoHQQHFModel.save_quantized(model, str(context.folder))
        found = {
            path: module.dequantize()
            for path, module in model.named_modules()
            if isinstance(module, HQQLinear)
        }
        return Made(
            model=context.restored(model, found),
            size_bytes=shipped_bytes(context.folder),
            seconds=seconds,
        )

    return make


def bitsandbytes_4bit(context: Context) -> Made:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return _by_transformers(
        context,
        config,
        lambda module: (
            dequantize_4bit(module.weight.data, module.weight.quant_state)
            if isinstance(module, Linear4bit)
            else None
        ),
    )


def bitsandbytes_8bit(context: Context) -> Made:
    from bitsandbytes.nn import Linear8bitLt
    from transformers import BitsAndBytesConfig

    def dequantize(module: Any) -> Tensor | None:
        if not isinstance(module, Linear8bitLt):
            return None
        scale_R: Tensor = module.weight.SCB.float()
        return module.weight.data.float() * scale_R[:, None] / 127

    config = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return _by_transformers(context, config, dequantize)


def torchao(bits: int) -> Adapter:
    def make(context: Context) -> Made:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
        from torchao.utils import TorchAOBaseTensor

        note = ""
        if bits == 8:
            kind: Any = Int8WeightOnlyConfig()
        else:
            group = context.group()
            note = f"group {group}"
            if context.device.startswith("cuda"):
                # the packing whose kernels torch itself has; the default one needs mslk
                kind = Int4WeightOnlyConfig(
                    group_size=group, int4_packing_format="tile_packed_to_4d"
                )
                note += ", inputs padded to 1,024s"
            else:
                from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

                kind = PrototypeInt4WeightOnlyConfig(group_size=group)
        model = context.original(torch.bfloat16).to(context.device)
        head = model.get_output_embeddings()

        def chosen(module: nn.Module, _path: str) -> bool:
            # as transformers chooses: the output layer, often tied, is left alone
            return isinstance(module, nn.Linear) and module is not head

        _, seconds = context.timed(lambda: quantize_(model, kind, chosen))
        torch.save(model.state_dict(), context.folder / "model.pt")
        model.config.save_pretrained(context.folder)
        found = {}
        for path, module in model.named_modules():
            weight: Any = getattr(module, "weight", None)
            if isinstance(weight, TorchAOBaseTensor):
                # packed layouts are opaque; what comes out for the identity is the transpose, and
                # products with 0 and 1 are exact
                eye_CC = torch.eye(weight.shape[1], device=weight.device, dtype=torch.bfloat16)
                product = torch.nn.functional.linear
                found[path] = weight.dequantize() if bits == 8 else product(eye_CC, weight).T
        return Made(
            model=context.restored(model, found),
            size_bytes=shipped_bytes(context.folder),
            seconds=seconds,
            note=note,
        )

    return make


def _by_transformers(
    context: Context,
    config: Any,
    dequantize: Callable[[nn.Module], Tensor | None],
) -> Made:
    """What a tool makes that transformers quantizes by as it loads a folder."""
    from transformers import AutoModelForCausalLM

    model, seconds = context.timed(
        lambda: AutoModelForCausalLM.from_pretrained(
            context.request.folder,
            quantization_config=config,
            device_map={"": context.device},
            dtype="auto",
        )
    )
    model.save_pretrained(context.folder)
    found = {path: dequantize(module) for path, module in model.named_modules()}
    return Made(
        model=context.restored(model, {p: w for p, w in found.items() if w is not None}),
        size_bytes=shipped_bytes(context.folder),
        seconds=seconds,
    )


def gptqmodel(bits: int) -> Adapter:
    def make(context: Context) -> Made:
        # its default on two cores is one worker, with which it refuses to start (7.7.0)
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

        group = context.group()
        config = QuantizeConfig(bits=bits, group_size=group, device=context.device)
        model = GPTQModel.load(context.request.folder, config)
        windows = [
            {"input_ids": w, "attention_mask": torch.ones_like(w)} for w in context.windows()
        ]
        _, seconds = context.timed(lambda: model.quantize(windows, batch_size=1))
        model.save(str(context.folder))
        saved = GPTQModel.load(str(context.folder), backend=BACKEND.TORCH, device=context.device)
        found = {}
        for path, module in saved.model.named_modules():
            if hasattr(module, "qweight"):
                # the class's own method: an instance may have put a compiled one in its place
                weight_CR = type(module).dequantize_weight(module)
                found[path] = weight_CR.T[: module.out_features, : module.in_features]
        return Made(
            model=context.restored(saved.model, found),
            size_bytes=shipped_bytes(context.folder),
            seconds=seconds,
            note=f"group {group}, {len(windows)} windows",
        )

    return make


def autoround(bits: int) -> Adapter:
    def make(context: Context) -> Made:
        from auto_round import AutoRound
        from transformers import AutoTokenizer

        group, windows = context.group(), context.windows()
        iterations = context.request.iterations
        rounding = AutoRound(
            context.original(),
            AutoTokenizer.from_pretrained(context.request.folder),
            scheme="W4A16",
            bits=bits,
            group_size=group,
            dataset=windows,
            nsamples=len(windows),
            seqlen=windows[0].shape[1],
            iters=iterations,
            batch_size=min(8, len(windows)),
            device_map=context.device,
            low_cpu_mem_usage=False,
            enable_torch_compile=False,
        )
        (model, settings), seconds = context.timed(rounding.quantize)
        found = {
            path: module.weight.detach().clone()
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and settings.get(path, {}).get("bits", 16) == bits
        }
        restored = context.restored(model, found)
        rounding.save_quantized(str(context.folder), format="auto_round")
        return Made(
            model=restored,
            size_bytes=shipped_bytes(context.folder),
            seconds=seconds,
            note=f"group {group}, {len(windows)} windows, {iterations} steps",
        )

    return make


def exl3(bits: float) -> Adapter:
    def make(context: Context) -> Made:
        if not context.device.startswith("cuda"):
            raise RuntimeError("exllamav3 quantizes on a CUDA device only")
        from exllamav3 import Config, Model
        from exllamav3.conversion import convert_model
        from exllamav3.modules import Linear

        with tempfile.TemporaryDirectory(prefix="peers-exl3-") as work:
            asked = ["-i", context.request.folder, "-o", str(context.folder), "-w", work]
            options = convert_model.parser.parse_args([*asked, "-b", str(bits)])
            prepared, state, fine, problem = convert_model.prepare(options)
            if not fine:
                raise RuntimeError(problem)
            _, seconds = context.timed(lambda: convert_model.main(prepared, state))
        saved = Model.from_config(Config.from_directory(str(context.folder)))
        saved.load(device=context.device)
        found = {}
        for module in saved:
            if isinstance(module, Linear):
                weight_CR = module.inner.get_weight_tensor().float()
                found[module.key] = weight_CR.T[
                    : module.out_features_unpadded, : module.in_features_unpadded
                ]
        return Made(
            model=context.restored(context.original(torch.float16), found),
            size_bytes=shipped_bytes(context.folder),
            seconds=seconds,
            note="its own calibration text; output layer apart, 6 bits",
        )

    return make


def llamacpp(kind: str) -> Adapter:
    def make(context: Context) -> Made:
        if context.request.gguf is None:
            raise ValueError("give --gguf, the model as a GGUF file of 16 bits")
        source, made = context.request.gguf, context.folder / f"{kind}.gguf"
        _, seconds = context.timed(lambda: _llama_quantize(context, source, made, kind))
        loaded = load(made)
        return Made(
            model=context.with_weights(loaded.model.state_dict()),
            size_bytes=made.stat().st_size - gguf_tokenizer_bytes(made),
            seconds=seconds,
            note="importance matrix" if context.request.imatrix else "no importance matrix",
        )

    return make


def _llama_quantize(context: Context, source: str, made: Path, kind: str) -> None:
    """Quantize by llama.cpp's program, or by llama-cpp-python, which takes no matrix here."""
    program = shutil.which("llama-quantize")
    if program is not None:
        matrix = ["--imatrix", context.request.imatrix] if context.request.imatrix else []
        subprocess.run(
            [program, *matrix, source, str(made), kind], check=True, stdout=subprocess.DEVNULL
        )
        return
    import llama_cpp

    if context.request.imatrix:
        raise ValueError("--imatrix needs the program llama-quantize")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    status = llama_cpp.llama_model_quantize(source.encode(), str(made).encode(), parameters)
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}")


def gguf_tokenizer_bytes(path: Path) -> int:
    """Bytes of the tokenizer's fields in a GGUF file."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields.values()
    return sum(
        sum(part.nbytes for part in field.parts)
        for field in fields
        if field.name.startswith("tokenizer.")
    )


def gptpack(path: str) -> Adapter:
    def make(context: Context) -> Made:
        file = Path(path)
        model = load_packed(file, context.device).runnable()
        if not isinstance(model, TransformersModel):
            raise ValueError(f"{file}: packed from another kind of model")
        data = file.read_bytes()
        header = decode_header(data)
        return Made(
            model=model,
            size_bytes=len(data) - header.files_bytes,
            seconds=None,
        )

    return make


def _described(path: str) -> str:
    """A packed file in words, by its header."""
    header = decode_header(Path(path).read_bytes())
    tuned = header.record is not None and header.record.tuned_steps
    return f"{'tuned' if tuned else 'untuned'}, {header.file_bytes:,} bytes with its tokenizer"


def unquantized(context: Context) -> Made:
    folder = Path(context.request.folder)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    model = context.reference.runnable()
    assert isinstance(model, TransformersModel)
    return Made(
        model=model,
        size_bytes=sum(f.stat().st_size for f in [*weights, folder / "config.json"]),
        seconds=None,
    )


REFERENCE = "unquantized"
PACKAGES = {
    "hqq": ("hqq", "hqq"),
    "bnb": ("bitsandbytes", "bitsandbytes"),
    "torchao": ("torchao", "torchao"),
    "gptqmodel": ("gptqmodel", "gptqmodel"),
    "autoround": ("auto_round", "auto-round"),
    "exl3": ("exllamav3", "exllamav3"),
    "llamacpp": ("llama_cpp", "llama-cpp-python"),
}
"""Module of each tool, and its package on PyPI."""
LLAMACPP = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")


def settings_of(tool: str, request: Request) -> dict[str, Adapter]:
    """The settings of a tool by name, in the order in which they are tried."""
    known: dict[str, dict[str, Adapter]] = {
        REFERENCE: {"as saved": unquantized},
        "hqq": {f"{bits} bit, group 64": hqq(bits) for bits in (4, 3, 2)},
        "bnb": {"int8": bitsandbytes_8bit, "NF4, double quantization": bitsandbytes_4bit},
        "torchao": {f"int{bits} weight only": torchao(bits) for bits in (8, 4)},
        "gptqmodel": {f"{bits} bit": gptqmodel(bits) for bits in (4, 3, 2)},
        "autoround": {f"W{bits}": autoround(bits) for bits in (4, 3, 2)},
        "exl3": {f"{bits} bit": exl3(bits) for bits in (4, 3, 2.5, 2)},
        "llamacpp": {kind: llamacpp(kind) for kind in LLAMACPP},
        "gptpack": {_described(path): gptpack(path) for path in request.gptpack},
    }
    return known[tool]


def measured(context: Context, made: Made) -> dict[str, Any]:
    """Fields of a row: bits per byte by `evaluate`, and how far from the reference, there."""
    reference = context.reference.runnable()
    assert isinstance(reference, TransformersModel)
    model = made.model.to(context.device).eval()
    model.compute_dtype = reference.compute_dtype = None
    found = evaluate(
        dataclasses.replace(context.reference, language_model=model),
        text=context.request.eval_text,
        against=context.reference,
        eval_tokens=context.request.limit_tokens,
        compiled="off",
    )
    agreement = found.agreement
    assert agreement is not None
    parameters = sum(p.numel() for p in reference.module.parameters())
    return {
        "size_bytes": made.size_bytes,
        "bits_per_parameter": 8 * made.size_bytes / parameters,
        "bpb": found.plain.bpb,
        "kl_mean_nats": agreement["kl_mean"],
        "kl_median_nats": agreement["kl_median"],
        "kl_p99_nats": agreement["kl_p99"],
        "same_top": agreement["same_top"],
        "quantize_seconds": made.seconds,
        "note": made.note,
    }


def rows_of(tool: str, request: Request) -> Iterator[Row]:
    """The rows of a tool as they are done; one that failed says why."""
    reference = load(request.folder, device=request.device)
    release = _release(tool)
    for setting, adapter in settings_of(tool, request).items():
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            context = Context(request=request, reference=reference, folder=Path(folder))
            try:
                row = Row(tool=tool, setting=setting, **measured(context, adapter(context)))
                note = ", ".join(filter(None, (row.note, release)))
                yield dataclasses.replace(row, note=note)
            except Exception as error:  # whatever a tool raises is what the table has to say of it
                traceback.print_exc()
                yield Row(tool=tool, setting=setting, note=f"not run: {error_line(error)}")
        gc.collect()
        if request.device.startswith("cuda"):
            torch.cuda.empty_cache()


def error_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {ascii(said[0])[1:-1]:.200}"


def absent(tool: str) -> str:
    """Why a tool cannot run here, in words; empty if nothing is missing."""
    if tool not in PACKAGES or (tool == "llamacpp" and shutil.which("llama-quantize")):
        return ""
    module, package = PACKAGES[tool]
    return "" if find_spec(module) is not None else f"{package} is not installed"


def _release(tool: str) -> str:
    """Name and version of a tool's package, where it is installed."""
    if tool not in PACKAGES:
        return ""
    package = PACKAGES[tool][1]
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or "").splitlines()[0])
    parser.add_argument("tool")
    parser.add_argument("request", type=Path)
    parser.add_argument("rows", type=Path)
    options = parser.parse_args()
    values = json.loads(options.request.read_text())
    for name in ("eval_text", "calibration_text", "gptpack"):
        values[name] = tuple(values[name])
    with options.rows.open("a") as file:
        for row in rows_of(options.tool, Request(**values)):
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            file.flush()
    # threads that some tools leave behind keep a process from ending
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
