"""A network's losses on a text -> those of its blend with an n-gram model of the text so far.

For each target the longest context that occurred before names one token, the *hint*: what mostly
followed it. With p the network's distribution and h the hint, what is scored is

    p'(v) = p(v) exp(beta [v = h]) / Z,    Z = 1 + p(h) (exp(beta) - 1),

which sums to one over the whole vocabulary whatever beta is, and needs no look at the target. beta
belongs to a bucket (the length of the context, how reliable its token was, how many shorter
contexts agree, and how likely the network finds the hint) and is learned online, by Newton steps of
logistic regression from the targets scored before; it starts at 0, where p' = p. So hint and beta
of a target depend on the file and on earlier tokens only. The published tilt (parameter-golf #1514)
has one fixed beta; that the network's own confidence chooses among several is worth as much again
(docs/log.md, 2026-11-24).

Hashed n-gram caches that looked up the count of the *target* and mixed it in are another matter:
their "distributions" summed to hundreds. `check_blend` therefore compares, on sampled targets, the
score with the entry of the whole distribution, and its sum with one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from gptpack.errors import ConfigError, LimitError

Array = npt.NDArray[Any]

RELIABILITY = 4
"""Classes of how often a context was followed by the same token: 1, 2-3, 4-7, 8 and more."""
AGREEMENT = 3
"""Classes of shorter contexts: none names the same token, some do, all do."""
CONFIDENCE = (-6.0, -4.0, -2.0, 0.0, 2.0)
"""Log-odds of the hint under the network at which its next class begins."""
PROBES = 4
"""Neighbouring slots that a context may stand in."""
FIRST_TABLE_BITS = 16
"""Bits of a table's size at first: 2^n slots for each order. It grows before it is half full."""
TABLE_GROWTH_BITS = 2
"""Bits by which a table grows. It is then learned anew from the first token, which is a third more
work at most."""
NORMALISED = 1e-4
"""Largest deviation from one that rounding gives a sum of float32 probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramSettings:
    """Which contexts are remembered and how fast their weight is learned."""

    orders: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    """Tokens of a context, rising."""
    prior: float = 0.4
    """Information that Newton's method is taken to have seen at beta = 0."""
    table_bits: int = 24
    """Bits of the largest table: each order remembers at most 2^n contexts."""

    def __post_init__(self) -> None:
        if not self.orders or self.orders[0] < 1 or list(self.orders) != sorted({*self.orders}):
            raise ConfigError(f"orders={self.orders} must rise from 1 or more")
        if self.prior <= 0:
            raise ConfigError(f"prior={self.prior} must be above 0")
        if not 4 <= self.table_bits <= 28:
            raise ConfigError(f"table_bits={self.table_bits} must lie in 4..28")

    @property
    def description(self) -> str:
        return f"ngram(orders={'+'.join(map(str, self.orders))}, prior={self.prior:g})"


@dataclass(frozen=True, slots=True, eq=False)
class Hints:
    """The n-gram model's hint of each target, ``[targets]``."""

    tokens: npt.NDArray[np.int32]
    """Expected token of each target, -1 for none."""
    buckets: npt.NDArray[np.int32]
    """Class of each hint by what is known of it without the network, -1 for none."""
    count: int
    """Number of those classes."""


def make_hints(tokens: npt.NDArray[np.uint16], settings: NgramSettings) -> Hints:
    """The hint of each target of `tokens`, each from the tokens before it."""
    targets = len(tokens) - 1
    hints = np.full(targets, -1, np.int32)
    buckets = np.full(targets, -1, np.int32)
    first, bits = 0, min(settings.table_bits, FIRST_TABLE_BITS)
    while first < targets:
        # if the text's length set the size, what is forgotten would depend on later tokens
        stop = targets if bits == settings.table_bits else min(targets, 1 << (bits - 1))
        table = np.zeros((len(settings.orders), 1 << bits), np.uint64)
        _hints(tokens, np.array(settings.orders), table, first, hints[:stop], buckets[:stop])
        first, bits = stop, min(bits + TABLE_GROWTH_BITS, settings.table_bits)
    return Hints(hints, buckets, len(settings.orders) * RELIABILITY * AGREEMENT)


# A slot of the table is 0 if empty, else a check word of 32 bits (never 0), the expected token of
# 24 and the count of 8: neighbours are read with one access to memory, which is what takes time.


@njit(nogil=True, cache=True)
def _find(slots: Array, tokens: Array, end: int, order: int) -> tuple[Any, Any]:  # pragma: no cover
    """The slot of the `order` tokens that end with position `end`, and their check word.

    If they are not remembered, it is the slot that they would take: the one with the least count.
    """
    one, half = np.uint64(1), np.uint64(32)
    state = np.uint64(order) * np.uint64(0x9E3779B97F4A7C15)
    for i in range(end - order + 1, end + 1):
        state = (state ^ np.uint64(tokens[i])) * np.uint64(0xD6E8FEB86659FD93)
        state ^= state >> half
    check = (state & np.uint64(0xFFFFFFFF)) | one
    last = len(slots) - 1
    first = np.int64(state >> half) & last
    least = first
    for probe in range(PROBES):
        at = (first + probe) & last
        if slots[at] >> half == check:
            return at, check
        if slots[at] & np.uint64(0xFF) < slots[least] & np.uint64(0xFF):
            least = at
    return least, check


@njit(nogil=True, cache=True)
def _followed(slot: Any, check: Any, token: int) -> Any:  # pragma: no cover
    """The slot of a context after `token` followed it."""
    count: Any = np.int64(slot & np.uint64(0xFF))
    expected: Any = np.int64((slot >> np.uint64(8)) & np.uint64(0xFFFFFF))
    if slot >> np.uint64(32) != check:
        expected, count = token, 1
    elif expected == token:
        count = min(count + 1, 255)
    elif count > 1:
        count >>= 1
    else:
        expected = token
    return check << np.uint64(32) | np.uint64(expected) << np.uint64(8) | np.uint64(count)


@njit(nogil=True, cache=True)
def _hints(
    tokens: Array, orders: Array, table: Array, first: int, hints: Array, buckets: Array
) -> None:  # pragma: no cover
    """Look up the hint of each target t, which follows token t, after learning token t.

    Targets before `first` have their hints already; the table only learns from them.
    """
    found = np.empty(len(orders), np.int64)
    where = np.zeros(len(orders), np.int64)
    checks = np.zeros(len(orders), np.uint64)
    longest: Any
    reliable: Any
    for t in range(len(hints)):
        longest, reliable = -1, 0
        for n in range(len(orders)):
            found[n] = -1
            if t >= orders[n]:
                # The context that ended before token t was looked up for the target before.
                table[n, where[n]] = _followed(table[n, where[n]], checks[n], tokens[t])
            if t + 1 >= orders[n]:
                where[n], checks[n] = _find(table[n], tokens, t, orders[n])
                slot = table[n, where[n]]
                if slot >> np.uint64(32) == checks[n]:
                    found[n] = np.int64((slot >> np.uint64(8)) & np.uint64(0xFFFFFF))
                    longest, reliable = n, np.int64(slot & np.uint64(0xFF))
        if longest < 0 or t < first:
            continue
        others = agreeing = 0
        for n in range(longest):
            others += found[n] >= 0
            agreeing += found[n] == found[longest]
        agreement = 2 if agreeing == others else (1 if agreeing else 0)
        level = 0
        while level < RELIABILITY - 1 and reliable >= 2 << level:
            level += 1
        hints[t] = found[longest]
        buckets[t] = (longest * RELIABILITY + level) * AGREEMENT + agreement


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """Losses of the blend, and how it came to them."""

    losses: npt.NDArray[np.float64]
    """Nats of each target under p'; NaN where the network's loss is."""
    betas: npt.NDArray[np.float64]
    """Beta of each target; 0 without a hint."""
    hinted: int
    """Number of scored targets with a hint."""
    hits: int
    """Number of those whose hint was right."""


def blend(
    tokens: npt.NDArray[np.uint16],
    hints: Hints,
    losses: npt.NDArray[np.float32],
    hint_losses: npt.NDArray[np.float32],
    settings: NgramSettings,
) -> Blend:
    """Losses under p', target after target, each beta learned from the targets before.

    Args:
        losses, hint_losses: the network's nats of each target and of its hint; NaN where a target
            was not scored, and nothing is learned there.
    """
    blended = losses.astype(np.float64)
    betas = np.zeros(len(losses))
    hinted, hits = _blend(
        tokens[1:].astype(np.int32),
        hints.tokens,
        hints.buckets,
        hint_losses.astype(np.float64),
        np.array(CONFIDENCE),
        np.zeros((hints.count, len(CONFIDENCE) + 1)),
        np.full((hints.count, len(CONFIDENCE) + 1), settings.prior),
        blended,
        betas,
    )
    return Blend(blended, betas, hinted, hits)


@njit(nogil=True, cache=True)
def _blend(
    targets: Array,
    hints: Array,
    buckets: Array,
    hint_losses: Array,
    confidence: Array,
    beta: Array,
    information: Array,
    losses: Array,
    betas: Array,
) -> tuple[int, int]:  # pragma: no cover
    hinted = hits = 0
    for t in range(len(losses)):
        bucket = buckets[t]
        if bucket < 0 or math.isnan(losses[t]):
            continue
        p = math.exp(-hint_losses[t])
        log_odds = -hint_losses[t] - math.log(max(1 - p, 1e-300))
        level = np.searchsorted(confidence, log_odds)
        b = beta[bucket, level]
        betas[t] = b
        log_z = math.log1p(p * math.expm1(b))
        hit = targets[t] == hints[t]
        losses[t] += log_z - (b if hit else 0.0)
        q = math.exp(b - hint_losses[t] - log_z)
        information[bucket, level] += q * (1 - q)
        beta[bucket, level] = b + ((1.0 if hit else 0.0) - q) / information[bucket, level]
        hinted += 1
        hits += hit
    return hinted, hits


def check_blend(
    targets: npt.NDArray[np.uint16],
    hints: Hints,
    blended: Blend,
    sampled: Mapping[int, npt.NDArray[np.float32]],
) -> dict[str, Any]:
    """Check on the sampled targets that p' is a distribution and that scores are its entries.

    Args:
        targets: the token of each target.
        sampled: log p ``[V]`` of some targets.

    Returns:
        How many were checked, and the largest deviations of a sum from 1 and of a score from
        the entry, in nats.

    Raises:
        LimitError: a sum deviates by more than `NORMALISED`, or an entry by more than that.
    """
    deviation = difference = 0.0
    for t, row in sampled.items():
        log_p = row.astype(np.float64)
        if hints.tokens[t] >= 0:
            log_p[hints.tokens[t]] += blended.betas[t]
            log_p -= math.log1p(
                math.exp(float(row[hints.tokens[t]])) * math.expm1(blended.betas[t])
            )
        deviation = max(deviation, abs(float(np.exp(log_p).sum()) - 1))
        difference = max(difference, abs(float(log_p[targets[t]]) + float(blended.losses[t])))
    if deviation > NORMALISED or difference > NORMALISED:
        raise LimitError(
            f"the blended probabilities of {len(sampled):,} sampled targets sum to 1 but for "
            f"{deviation:.3g}, and scores differ from them by {difference:.3g} nats; up to "
            f"{NORMALISED:g} would be rounding, this is no distribution"
        )
    return {
        "positions": len(sampled),
        "largest_deviation_of_sum": deviation,
        "largest_difference_nats": difference,
    }
