"""`gptpack train` from a checkout: ``python train.py ...``, or under torchrun."""

from gptpack.cli.main import run

if __name__ == "__main__":
    run(command="train")
