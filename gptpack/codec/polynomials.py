"""A number of states -> the trellis code that has them. No numpy: headers are read by this too."""

from gptpack.errors import QuantError

POLYNOMIALS: dict[int, tuple[int, int]] = {
    4: (0o5, 0o2),
    8: (0o13, 0o4),
    16: (0o23, 0o4),
    32: (0o45, 0o10),
    64: (0o103, 0o24),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}
"""Parity-check polynomials (h0, h1) by the number of states; bit i is the coefficient of D^i."""

GAIN_DECIBELS: dict[int, float] = {
    1: 0.0,
    4: 0.99,
    8: 1.09,
    16: 1.16,
    32: 1.22,
    64: 1.27,
    128: 1.29,
    256: 1.33,
}
"""Decibels by which a code has less noise than rounding, at a high rate and with the same symbols;
1.53 is the limit."""


def noise_of(states: int) -> float:
    """Variance of an error at a high rate, in squared grid steps: 1/12 for rounding (1 state)."""
    return float(10 ** (-GAIN_DECIBELS[states] / 10) / 12)


def polynomials(states: int) -> tuple[int, int]:
    """The parity-check polynomials (h0, h1) of the code with `states` states."""
    if states not in POLYNOMIALS:
        known = ", ".join(map(str, POLYNOMIALS))
        raise QuantError(f"no trellis code with {states} states; there are {known}")
    return POLYNOMIALS[states]
