"""Writes tiny-v1.artifact: `python tests/golden/make_artifact.py`, only when the format changes.

Every section is stored raw, so that its bytes do not depend on the version of a compressor.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from strategies import MODEL, TOKENIZER, example_tensors, write_artifact

PACK = {"budget_bytes": 4000, "code_bytes": 0, "made_by": "tests/golden/make_artifact.py"}

if __name__ == "__main__":
    path = Path(__file__).with_name("tiny-v1.artifact")
    write_artifact(
        path,
        model=MODEL,
        tokenizer=TOKENIZER,
        tensors=example_tensors(),
        pack=PACK,
        codecs=["raw"],
    )
    print(f"{path}: {path.stat().st_size:,} bytes")
