"""A small law of what runs came to, and how far it is off: from size, text and bits to bpb.

Three straight lines through logarithms, each by least squares:

    ln bpb before packing   in  ln parameters, ln tokens, and ln vocabulary where runs differ in it
    ln penalty of packing   in  bits a weight, ln parameters, ln tokens
    ln tokens a GPU second  in  ln parameters

Nothing is assumed of the exponents (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, has the
form). How far predictions are off is measured by leaving each run out in turn.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gptpack.errors import DataError
from gptpack.report.student_t import t_quantile

Floats = npt.NDArray[np.float64]

SPARE = 3
"""A line needs so many points more than it has coefficients: fewer, and an error is not known."""
LEVELS = 3
"""Different parameters, and different tokens, that the runs must have."""
CONFIDENCE = 0.95
LARGEST_LOGARITHM = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One trained model, and what one packed file of it is worth."""

    name: str
    parameters: int
    vocab: int
    tokens: int
    gpu_seconds: float
    """Of training, over all GPUs."""
    bpb_before: float
    bits: float
    """Coded bits a weight of the file; 0 where nothing was packed."""
    bpb_after: float


class Line:
    """Least squares through points, with the error of a prediction."""

    def __init__(self, rows: Sequence[Sequence[float]], values: Sequence[float]) -> None:
        self.x_NK = np.column_stack([np.ones(len(rows)), np.asarray(rows, np.float64)])
        y_N = np.asarray(values, np.float64)
        found = np.linalg.lstsq(self.x_NK, y_N, rcond=None)
        self.coefficients: Floats = found[0].astype(np.float64)
        self.rank = int(found[2])
        rest_N = y_N - self.x_NK @ self.coefficients
        self.spare = len(y_N) - self.rank
        self.variance = float(rest_N @ rest_N) / self.spare if self.spare > 0 else math.inf
        self.inverse_KK = np.linalg.pinv(self.x_NK.T @ self.x_NK)

    def at(self, row: Sequence[float]) -> float:
        return float(self.coefficients @ np.array([1.0, *row]))

    def error(self, row: Sequence[float]) -> float:
        """Standard error of one more observation at `row`."""
        x_K = np.array([1.0, *row])
        return math.sqrt(self.variance * (1 + float(x_K @ self.inverse_KK @ x_K)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the law says of a run that was not made."""

    bpb_before: float
    penalty_bpb: float
    error_bpb: float
    """Half of the interval that holds the file's bpb with `CONFIDENCE`, by the scatter of runs."""

    @property
    def bpb_after(self) -> float:
        return self.bpb_before + self.penalty_bpb


class Law:
    """The three lines through `runs`.

    Args:
        spare: so many points more than coefficients are asked for; with 0 the lines may go through
            every point, and their errors are infinite.

    Raises:
        DataError: too few runs, or runs that are too much alike.
    """

    def __init__(self, runs: Sequence[RunFigures], *, spare: int = SPARE) -> None:
        self.runs = list(runs)
        trained = list({(r.parameters, r.vocab, r.tokens, r.bpb_before): r for r in runs}.values())
        vocabularies = sorted({r.vocab for r in trained})
        self.with_vocab = len(vocabularies) >= LEVELS
        if 1 < len(vocabularies) < LEVELS:
            raise DataError(
                f"runs with vocabularies of {' and '.join(map(str, vocabularies))}: a law takes "
                f"one, or {LEVELS} and more; leave one out or add runs with others"
            )
        packed = [r for r in runs if r.bits and r.bpb_after > r.bpb_before]
        self._check(trained, packed, spare)
        self.before = Line(
            [self._place(r.parameters, r.tokens, r.vocab) for r in trained],
            [math.log(r.bpb_before) for r in trained],
        )
        self.penalty = Line(
            [_rate(r.bits, r.parameters, r.tokens) for r in packed],
            [math.log(r.bpb_after - r.bpb_before) for r in packed],
        )
        self.speed = Line(
            [[math.log(r.parameters)] for r in trained],
            [math.log(r.tokens / r.gpu_seconds) for r in trained],
        )
        for line in (self.before, self.penalty, self.speed):
            if line.rank < len(line.coefficients):
                raise DataError(
                    "the runs do not tell what parameters, tokens, vocabulary and bits do apart; "
                    "make runs that differ in one of them alone and add them with --runs"
                )

    def _check(
        self, trained: Sequence[RunFigures], packed: Sequence[RunFigures], spare: int
    ) -> None:
        needed, levels = 3 + self.with_vocab + spare, LEVELS if spare else 2
        sizes, lengths = len({r.parameters for r in trained}), len({r.tokens for r in trained})
        bits = len({round(r.bits, 1) for r in packed})
        if len(trained) < needed or min(sizes, lengths) < levels:
            raise DataError(
                f"a law takes at least {needed} trained models, with {levels} different numbers of "
                f"parameters and of tokens; there are {len(trained)}, with {sizes} and {lengths}; "
                "make more runs and add them with --runs"
            )
        if len(packed) < 4 + spare or bits < levels:
            raise DataError(
                f"a law takes at least {4 + spare} packed files that cost something, at {levels} "
                f"different bits a weight; there are {len(packed)}, at {bits}; pack some at fewer "
                "bits and add them with --runs"
            )

    def _place(self, parameters: float, tokens: float, vocab: int) -> list[float]:
        place = [math.log(parameters), math.log(tokens)]
        return [*place, math.log(vocab)] if self.with_vocab else place

    def expect(self, *, parameters: int, tokens: float, vocab: int, bits: float) -> Expected:
        """Bits per byte before and after packing.

        Raises:
            DataError: they are beyond everything that can be.
        """
        place = self._place(parameters, tokens, vocab)
        rate = _rate(bits, parameters, tokens)
        before, penalty = _exp(self.before.at(place)), _exp(self.penalty.at(rate))
        spare = self.before.spare
        quantile = -t_quantile((1 - CONFIDENCE) / 2, spare) if spare else math.inf
        # errors of logarithms are shares
        scatter = math.hypot(before * self.before.error(place), penalty * self.penalty.error(rate))
        return Expected(bpb_before=before, penalty_bpb=penalty, error_bpb=quantile * scatter)

    def tokens_per_second(self, parameters: int) -> float:
        """Of training on one GPU."""
        return _exp(self.speed.at([math.log(parameters)]))

    def misses(self) -> dict[str, float]:
        """By name of a packed run: the law of all other runs' files minus what was measured, bpb.

        Files of the run's own checkpoint are left out with it. What is left needs no points to
        spare: a miss is measured, not estimated. Runs whose leaving leaves no law are not among
        them.
        """
        found = {}
        names: Counter[str] = Counter()
        for run in self.runs:
            if not run.bits:
                continue
            others = [r for r in self.runs if not _same_training(r, run)]
            try:
                expected = Law(others, spare=0).expect(
                    parameters=run.parameters, tokens=run.tokens, vocab=run.vocab, bits=run.bits
                )
            except DataError:
                continue
            name = f"{run.name}, {run.tokens / 1e6:.0f} M tokens, {run.bits:.2f} bits"
            names[name] += 1
            if names[name] > 1:
                name = f"{name} ({names[name]})"
            found[name] = expected.bpb_after - run.bpb_after
        return found

    def implausible(self) -> list[str]:
        """What of the fit contradicts everything known, and so is noise or a flaw of the runs."""
        _, parameters, tokens, *_ = self.before.coefficients
        found = []
        if parameters >= 0:
            found.append("more parameters do not lower bits per byte in these runs")
        if tokens >= 0:
            found.append("more tokens do not lower bits per byte in these runs")
        if self.penalty.coefficients[1] >= 0:
            found.append("more bits do not lower the penalty in these runs")
        return found


def _exp(logarithm: float) -> float:
    """A figure of the law; raises `DataError` where it is beyond everything that can be."""
    if not logarithm <= LARGEST_LOGARITHM:
        raise DataError(
            f"the law through these runs gives a figure of e^{logarithm:.0f}; one of the runs' own "
            "figures must be wrong"
        )
    return math.exp(logarithm)


def _rate(bits: float, parameters: float, tokens: float) -> list[float]:
    return [bits, math.log(parameters), math.log(tokens)]


def _same_training(a: RunFigures, b: RunFigures) -> bool:
    return (a.parameters, a.vocab, a.tokens, a.bpb_before) == (
        b.parameters,
        b.vocab,
        b.tokens,
        b.bpb_before,
    )
