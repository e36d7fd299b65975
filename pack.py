"""`gptpack pack` from a checkout: ``python pack.py ckpt.pt --budget 16MB --output ...``."""

from gptpack.cli.main import run

if __name__ == "__main__":
    run(command="pack")
