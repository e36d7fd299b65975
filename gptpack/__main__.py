"""``python -m gptpack`` is the command `gptpack`."""

from gptpack.cli.main import run

if __name__ == "__main__":
    run()
