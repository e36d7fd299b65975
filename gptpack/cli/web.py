"""`gptpack web`: a packed file -> a folder whose page runs the model, and a line on its size."""

from pathlib import Path
from typing import Any

import click

from gptpack.cli.bars import progress_bars
from gptpack.cli.console import note
from gptpack.cli.help import Command
from gptpack.cli.options import WORDS

PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("path", metavar="FILE", type=PATH)
@click.option("--output", "-o", default=Path("site"), type=PATH, help="Folder to write.")
@click.option("--tokenizer", type=PATH, help="SentencePiece model, where FILE brings none.")
@click.option("--licence", type=PATH, help="Text that the page shows as the model's licence.")
@click.option("--title", type=WORDS, help="Heading of the page. [default: the file's name]")
def command(path: Path, output: Path, **settings: Any) -> None:
    """Write a static page in which the model in FILE runs, in the browser of whoever opens it.

    \b
    Examples:
      gptpack web demo/demo.gptpack --tokenizer demo/tokenizer.model -o site
      gptpack web SmolLM2-135M-Instruct.gptpack --licence LICENSE
      python -m http.server -d site --bind 127.0.0.1

    Any host of static files serves the folder, under any path: the page fetches nothing from
    elsewhere, sends nothing, and works without a network once it was loaded. It runs golf models
    and those of transformers that are shaped like Llama.
    """
    from gptpack.jobs.web import make_site

    with progress_bars() as progress:
        made = make_site(path, output, progress=progress, **settings)
    for text in made.notes:
        note(text)
    note(f"wrote {output}, {made.site_bytes:,} bytes, of which {made.page_bytes:,} are the page's")
