"""`gptpack sample`: a packed file and a prompt -> text, as it is drawn."""

import re
from pathlib import Path
from typing import Any

import click

from gptpack.cli.console import note
from gptpack.cli.help import Command, heading
from gptpack.cli.options import RUNS_ON, SEED, WORDS, Finite

PATH = click.Path(path_type=Path)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys, which a model might have learned; line ends and tabs stay."""


@click.command(cls=Command)
@click.argument("path", metavar="FILE", type=PATH)
@heading("What to say")
@click.option("--prompt", type=WORDS, default="", show_default="none", help="Text to go on from.")
@click.option("--tokens", type=click.IntRange(min=1), default=100, help="Most tokens to draw.")
@click.option(
    "--temperature",
    type=Finite(min=0),
    default=0.8,
    help="How freely tokens are drawn; 0 takes the likeliest each time.",
)
@click.option(
    "--top-p",
    type=Finite(min=0, max=1),
    default=1.0,
    help="Draw from the likeliest tokens that have this share of the probability together.",
)
@click.option("--seed", type=SEED, default=0, help="Seed of the draws.")
@click.option("--raw", is_flag=True, help="Leave the tokenizer's chat template out.")
@heading("By what")
@click.option(
    "--tokenizer", type=PATH, help="SentencePiece model or ranks, where FILE brings none."
)
@click.option("--model", help="Recipe, file or name, whose [model] a bare state dict has.")
@click.option("--device", type=RUNS_ON, default="auto", help="Device that computes.")
def command(path: Path, tokens: int, raw: bool, **settings: Any) -> None:
    """Let the model in FILE go on from a prompt.

    \b
    Examples:
      gptpack sample SmolLM2-135M-Instruct.gptpack --prompt "Why is the sky blue?"
      gptpack sample model.gptpack --tokenizer tok.model --prompt "The river" --temperature 0

    FILE may also be a checkpoint or a Hugging Face folder. Temperature 0 takes the likeliest token
    each time. Of more tokens than the model reads at once, it forgets the oldest half. Ctrl-C stops
    where it is. What is said at the end counts tokens and the seconds that the model took.
    """
    from gptpack.jobs.sample import Tally, sample

    tally = Tally()
    try:
        for piece in sample(path, chat=not raw, max_tokens=tokens, tally=tally, **settings):
            click.echo(CONTROLS.sub("\ufffd", piece), nl=False)
    finally:
        if tally.tokens:
            click.echo()
        if tally.prompt_tokens:
            note(str(tally))
