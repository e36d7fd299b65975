"""Writes the golden files: `python tests/golden/make_artifact.py`, only when the format changes.

Every section is stored raw, so that its bytes do not depend on the version of a compressor.
"""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from strategies import HUGGING, MODEL, TOKENIZER, example_tensors, write_artifact

from gptpack.values import TokenizerIdentity

PACK = {"budget_bytes": 4000, "code_bytes": 0, "made_by": "tests/golden/make_artifact.py"}
FILES = {"tokenizer.json": b"{}", "LICENSE": b"Do as you like."}
"""Too short for any compressor, so that they are stored raw."""
IDENTITY = TokenizerIdentity(sha256=hashlib.sha256(b"{}").hexdigest(), vocab=60, bos=3)
FIRST, *REST = example_tensors()
TENSORS = [replace(FIRST, parameters={"transposed": 1}), *REST]
CONTENTS = {
    "tiny-v1.artifact": {"model": MODEL, "tokenizer": TOKENIZER, "tensors": example_tensors()},
    "tiny-v2.artifact": {
        "model": HUGGING,
        "tokenizer": IDENTITY,
        "tensors": TENSORS,
        "files": FILES,
    },
}

if __name__ == "__main__":
    for name, contents in CONTENTS.items():
        path = Path(__file__).with_name(name)
        write_artifact(path, **contents, pack=PACK, codecs=["raw"])
        print(f"{path}: {path.stat().st_size:,} bytes")
