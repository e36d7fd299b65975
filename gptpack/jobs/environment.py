"""This machine -> what it has of what gptpack can use, found by trying rather than by looking.

Modules are imported and codecs run; a CUDA device multiplies two matrices. Nothing is installed,
fetched or written.
"""

import functools
import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptpack.artifact.memory import physical_bytes
from gptpack.codec.general import BYTE_CODECS
from gptpack.cores import usable_cores
from gptpack.errors import GptpackError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that gptpack can use, whether it works here, and what to do if it does not."""

    name: str
    works: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """A task of a user, and whether it can be done here."""

    task: str
    works: bool
    missing: tuple[str, ...]
    """Names of the findings that the task needs and that do not work."""


TASKS: dict[str, tuple[str, ...]] = {
    "check": ("numpy", "zstandard"),
    "inspect": ("numpy", "zstandard"),
    "verify": ("numpy", "numba", "zstandard"),
    "data": ("numpy", "sentencepiece", "zstandard"),
    "train": ("torch", "numpy", "sentencepiece", "safetensors"),
    "pack": ("torch", "numba", "zstandard", "sentencepiece", "safetensors"),
    "eval": ("torch", "numba", "zstandard", "sentencepiece"),
    "hf": ("torch", "transformers"),
    "gguf": ("torch", "transformers", "gguf"),
    "gpt2": ("tiktoken",),
    "download": ("huggingface_hub",),
    "report": ("plotly",),
    "brotli": ("codec brotli",),
    "cuda": ("torch", "cuda"),
    "triton": ("torch", "cuda", "triton"),
    "fa4": ("torch", "cuda", "fa4"),
    "fa3": ("torch", "cuda", "fa3"),
}
"""Task -> names of the findings that it needs."""

REMEDIES = {
    "numpy": "pip install numpy",
    "zstandard": "pip install zstandard",
    "sentencepiece": "pip install sentencepiece",
    "safetensors": "pip install safetensors",
    "numba": "pip install numba",
    "torch": "pip install torch",
    "plotly": "pip install 'gptpack[report]'",
    "transformers": "pip install 'gptpack[hf]'",
    "gguf": "pip install 'gptpack[gguf]'",
    "tiktoken": "pip install 'gptpack[gpt2]'",
    "huggingface_hub": "pip install 'gptpack[hub]'",
    "triton": "pip install 'gptpack[triton]'",
    "cuda": "a CUDA device, its driver, and a torch built for CUDA",
    "fa4": "a Hopper device and pip install 'gptpack[fa4]'",
    "fa3": "a Hopper device and pip install kernels",
    "codec brotli": "pip install 'gptpack[brotli]'",
}
MODULES = (
    "numpy",
    "torch",
    "numba",
    "zstandard",
    "sentencepiece",
    "safetensors",
    "triton",
    "plotly",
    "transformers",
    "gguf",
    "tiktoken",
    "huggingface_hub",
)


def survey(folder: Path) -> list[Finding]:
    """Every finding about this machine; the disk is that of `folder`."""
    findings = [*_machine(folder), *(_module(name) for name in MODULES)]
    findings += [_codec(codec) for codec in BYTE_CODECS]
    return [*findings, *_cuda(), *_flash_attention()]


def abilities(findings: Iterable[Finding]) -> list[Ability]:
    """Every task, and what is missing for it."""
    working = {finding.name for finding in findings if finding.works}
    return [
        Ability(
            task=task,
            works=working.issuperset(needed),
            missing=tuple(name for name in needed if name not in working),
        )
        for task, needed in TASKS.items()
    ]


def _machine(folder: Path) -> list[Finding]:
    """Findings about Python, processor, memory and disk."""
    cores = usable_cores()
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    python = platform.python_version_tuple()[:2]
    recent = tuple(map(int, python)) >= (3, 11)
    disk = shutil.disk_usage(folder)
    writable = os.access(folder, os.W_OK)
    return [
        Finding(
            name="python",
            works=recent,
            found=f"{platform.python_version()} on {system}",
            remedy="" if recent else "Python 3.11 or newer",
        ),
        Finding(name="processor", works=True, found=f"{cores} cores{_memory()}"),
        Finding(
            name="disk",
            works=writable and disk.free > 1 << 30,
            found=f"{disk.free / 1e9:,.1f} GB free{'' if writable else ', not writable'}",
            remedy="" if writable and disk.free > 1 << 30 else "a folder with a GB to write to",
        ),
    ]


def _memory() -> str:
    there = physical_bytes()
    return "" if there is None else f", {there / 1e9:,.1f} GB of memory"


def _tried(name: str, attempt: Callable[[], str]) -> Finding:
    """The finding that `attempt` makes, or the reason why it fails: anything may be broken."""
    try:
        return Finding(name=name, works=True, found=attempt())
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        why = first if isinstance(error, GptpackError) else f"{type(error).__name__}: {first}"
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            why = f"not installed; {REMEDIES[name]}"
        return Finding(name=name, works=False, found=why, remedy=REMEDIES.get(name, ""))


def _module(name: str) -> Finding:
    def attempt() -> str:
        importlib.import_module(name)
        return importlib.metadata.version(name)

    return _tried(name, attempt)


def _codec(codec: Any) -> Finding:
    """The finding about a codec, after it has coded and decoded some bytes."""
    sample = bytes(range(256)) * 4

    def attempt() -> str:
        stored = codec.encode(sample)
        if codec.decode(stored, len(sample)) != sample:
            raise GptpackError("does not give back what it coded")
        return "works"

    return _tried(f"codec {codec.name}", attempt)


def _cuda() -> list[Finding]:
    """The finding about each CUDA device, after it has multiplied two matrices."""
    try:
        torch = importlib.import_module("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception:  # torch's own finding says why
        count = 0
    if not count:
        found = f"torch sees none; needs {REMEDIES['cuda']}"
        return [Finding(name="cuda", works=False, found=found, remedy=REMEDIES["cuda"])]

    def attempt(index: int) -> str:
        place = torch.device("cuda", index)
        ones = torch.ones(64, 64, device=place, dtype=torch.bfloat16)
        if float((ones @ ones).float().sum()) != 64**3:
            raise GptpackError("multiplies matrices wrongly")
        about = torch.cuda.get_device_properties(place)
        return (
            f"{about.name}, {about.total_memory / 1e9:,.0f} GB, capability "
            f"{about.major}.{about.minor}, CUDA {torch.version.cuda}"
        )

    first = _tried("cuda", functools.partial(attempt, 0))
    others = [_tried(f"cuda:{i}", functools.partial(attempt, i)) for i in range(1, count)]
    return [first, *others]


def _flash_attention() -> list[Finding]:
    """The findings about FlashAttention-4 and -3, without which gptpack does as well."""

    def hopper(*, exactly: bool) -> None:
        torch = importlib.import_module("torch")
        there = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
        if there < (9, 0) or (exactly and there != (9, 0)):
            raise GptpackError("needs a Hopper device; cuDNN or torch's own attention is used")

    def fourth() -> str:
        hopper(exactly=False)
        try:
            importlib.import_module("flash_attn.cute")
        except ModuleNotFoundError:
            raise GptpackError("not installed; cuDNN's attention is used") from None
        return importlib.metadata.version("flash-attn-4")

    def third() -> str:
        hopper(exactly=True)
        with suppress(ImportError):
            # our own folder `kernels` is found by that name in a checkout, without get_kernel
            if hasattr(importlib.import_module("kernels"), "get_kernel"):
                return "by way of kernels"
        raise GptpackError("not installed; cuDNN's attention is used")

    return [_tried("fa4", fourth), _tried("fa3", third)]
