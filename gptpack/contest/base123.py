"""Bytes <-> text that stands between quotes in a Python file: 15 characters for 13 bytes.

Of the 127 characters of ASCII that a source may hold, 123 need no escape in a string of one line;
control characters are among them. base85, which uses printable ones only, takes 8 % more.
"""

ALPHABET = "".join(chr(code) for code in range(1, 128) if chr(code) not in "\n\r'\\")
CHARACTERS, BYTES = 15, 13
"""Of a block: ``123^15`` is just above ``256^13``."""
_DIGITS = {character: digit for digit, character in enumerate(ALPHABET)}

DECODER = r"""a=[c for c in map(chr,range(1,128))if c not in"\n\r'\\"]
d=lambda t:b"".join(sum(a.index(c)*123**i for i,c in enumerate(t[k:k+15])).to_bytes(13,"little")for k in range(0,len(t),15)).rstrip(b"\0")
"""  # noqa: E501
"""What defines `d`, as `decode`, in a file that has nothing of ours."""


def encode(data: bytes) -> str:
    """`data`, which must not end in a zero byte, as text.

    Raises:
        ValueError: it does.
    """
    if data.endswith(b"\0"):
        raise ValueError("data that ends in zeros cannot be told from padding")
    characters = []
    for start in range(0, len(data), BYTES):
        block = int.from_bytes(data[start : start + BYTES], "little")
        for _ in range(CHARACTERS):
            block, digit = divmod(block, len(ALPHABET))
            characters.append(ALPHABET[digit])
    return "".join(characters)


def decode(text: str) -> bytes:
    """What `encode` made a text of.

    Raises:
        ValueError: it made none like it.
    """
    if len(text) % CHARACTERS:
        raise ValueError(f"{len(text)} characters are not blocks of {CHARACTERS}")
    blocks = []
    for start in range(0, len(text), CHARACTERS):
        block = 0
        for character in reversed(text[start : start + CHARACTERS]):
            if character not in _DIGITS:
                raise ValueError(f"{character!r} is not of the alphabet")
            block = block * len(ALPHABET) + _DIGITS[character]
        if block >> (8 * BYTES):
            raise ValueError("a block is beyond its bytes")
        blocks.append(block.to_bytes(BYTES, "little"))
    return b"".join(blocks).rstrip(b"\0")
