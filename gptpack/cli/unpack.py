"""`gptpack unpack`: a packed file -> what others read, and what that costs in bytes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note, print_json, print_table
from gptpack.cli.help import Choice, Command
from gptpack.escape import plain
from gptpack.jobs.unpack import DTYPES, unpack

PATH = click.Path(path_type=Path)
TYPES = list(dict.fromkeys(dtype for dtypes in DTYPES.values() for dtype in dtypes))


@click.command(cls=Command)
@click.argument("path", metavar="FILE", type=PATH)
@click.option("--to", required=True, type=Choice(list(DTYPES)), help="What to write.")
@click.option("--output", "-o", required=True, type=PATH, help="File or folder to write.")
@click.option(
    "--dtype",
    type=Choice(TYPES),
    help="Type of the matrices; q8_0 is GGUF's alone. [default: float32; for gguf float16]",
)
@click.option("--keep-packed", is_flag=True, help="Write a folder around the packed bytes.")
@click.option("--force", is_flag=True, help="Replace what stands at --output.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(path: Path, output: Path, as_json: bool, **settings: Any) -> None:
    """Write the model in the packed FILE for other programs.

    \b
    Examples:
      gptpack unpack model.gptpack --to transformers -o model
      gptpack unpack model.gptpack --to transformers --keep-packed -o model-packed
      gptpack unpack model.gptpack --to gguf --dtype q8_0 -o model.gguf

    transformers is a folder that needs nothing of gptpack; in float32 its weights are bit for bit
    those that were evaluated. With --keep-packed its weights are FILE's bytes, and it loads in
    transformers after `import gptpack.hf`. safetensors is one file of named tensors, of any model.
    gguf is for llama.cpp and what is built on it: Llama, Mistral, Qwen2, Qwen3, GPT-2.
    """
    with progress_bars(quiet=as_json) as progress:
        made = unpack(path, output, **settings, progress=progress)
    if as_json:
        print_json(asdict(made) | {"path": str(made.path)})
    else:
        rows = [
            ["packed file, bytes", f"{made.packed_bytes:,}"],
            [f"{made.to}, {made.dtype}, bytes", f"{made.bytes:,}"],
        ]
        print_table(["unpack", ""], rows)
    for line in made.notes:
        note(plain(line, 300))
    if made.dtype != "packed" and not as_json:
        note(
            f"{click.format_filename(made.path)} is unpacked: {made.bytes / made.packed_bytes:.1f} "
            f"times the bytes of {click.format_filename(path)}"
        )
