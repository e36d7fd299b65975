"""`gptpack eval` from a checkout: ``python eval.py FILE --data DIR``."""

from gptpack.cli.main import run

if __name__ == "__main__":
    run(command="eval")
