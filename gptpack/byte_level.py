"""Characters of byte-level vocabularies -> the bytes that they stand for."""


def byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table).

    Printable characters of Latin-1 stand for themselves; the other bytes, in order, for those from
    U+0100 on. The order of the result is that of GPT-2's first 256 tokens.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    found = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    return found | {chr(0x100 + place): byte for place, byte in enumerate(rest)}
