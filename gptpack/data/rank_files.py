"""A file of mergeable ranks -> the bytes of each token, and those -> tiktoken's file.

Three forms: tiktoken's (base64 and rank per line), GPT-2's own ``vocab.bpe`` (a merge per line,
behind the 256 bytes, which it leaves out), and the scripts of js-tiktoken (JSON that is assigned).
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gptpack.byte_level import byte_level
from gptpack.errors import TokenizerError

Pieces = tuple[bytes, ...]


def ranks_file(pieces: Sequence[bytes]) -> bytes:
    """The file in which tiktoken keeps ranks."""
    return b"".join(base64.b64encode(p) + b" %d\n" % rank for rank, p in enumerate(pieces))


def _of_tiktoken(path: Path, content: bytes) -> Pieces:
    def entries() -> Iterator[tuple[int, bytes]]:
        for number, line in enumerate(content.splitlines(), 1):
            if not line.strip():
                continue
            try:
                encoded, rank = line.split()
                yield int(rank), base64.b64decode(encoded, validate=True)
            except (ValueError, binascii.Error) as error:
                raise TokenizerError(
                    f"{path}: line {number} is not a base64 token and its rank"
                ) from error

    return _in_order(path, list(entries()))


def _of_merges(path: Path, content: bytes) -> Pieces:
    byte_of = byte_level()
    pieces = [bytes([byte]) for byte in byte_of.values()]
    for number, line in enumerate(content.splitlines()[1:], 2):
        try:
            left, right = line.decode().split(" ")
            pieces.append(bytes(byte_of[character] for character in left + right))
        except (ValueError, KeyError) as error:
            raise TokenizerError(f"{path}: line {number} is not two tokens that merge") from error
    return _in_order(path, list(enumerate(pieces)))


def _of_script(path: Path, content: bytes) -> Pieces:
    try:
        # each line: a mark, the rank of its first token, and tokens
        values, _ = json.JSONDecoder().raw_decode(content[content.index(b"{") :].decode())
        lines = [line.split() for line in values["bpe_ranks"].splitlines()]
        entries = [
            (int(first) + place, base64.b64decode(encoded, validate=True))
            for _, first, *tokens in lines
            for place, encoded in enumerate(tokens)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"{path}: not a script of ranks as js-tiktoken has them") from error
    return _in_order(path, entries)


def _in_order(path: Path, entries: Sequence[tuple[int, bytes]]) -> Pieces:
    pieces = dict(entries)
    if not entries or sorted(rank for rank, _ in entries) != list(range(len(entries))):
        raise TokenizerError(
            f"{path}: the ranks are not 0 to {max(0, len(entries) - 1)}, each once"
        )
    if not all(pieces.values()):
        raise TokenizerError(f"{path}: a token of no bytes")
    return tuple(pieces[rank] for rank in range(len(pieces)))


RANKS: dict[str, Callable[[Path, bytes], Pieces]] = {
    "ranks": _of_tiktoken,
    "merges": _of_merges,
    "script": _of_script,
}
"""Kind of a file by `accounting.table_kind` -> what reads it."""
