"""`gptpack completion`: a shell's name -> the script by which it completes commands."""

import click
from click.shell_completion import get_completion_class

from gptpack.cli import main
from gptpack.cli.help import Choice, Command

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script of SHELL: bash (4.4 or newer), zsh or fish.

    \b
    Examples:
      gptpack completion bash > ~/.local/share/bash-completion/completions/gptpack
      gptpack completion zsh > ~/.zfunc/_gptpack     with ~/.zfunc in fpath, before compinit
      gptpack completion fish > ~/.config/fish/completions/gptpack.fish
    """
    script = get_completion_class(shell)
    assert script is not None, shell
    click.echo(script(main.group, {}, "gptpack", main.COMPLETE).source())
