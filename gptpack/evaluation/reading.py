"""A text and how to read it -> the plan and the scorer of any kind of evaluation."""

from dataclasses import dataclass
from typing import Any

from gptpack.data.accounting import TokenBytes
from gptpack.data.shards import Tokens
from gptpack.errors import AccountingError, ConfigError
from gptpack.evaluation.forward import Forward
from gptpack.evaluation.result import Score
from gptpack.evaluation.scorer import Lanes, Scorer
from gptpack.evaluation.windows import Indices, Plan, Tail, default_tail, plan_windows
from gptpack.progress import Progress, silent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A text, which targets of it are scored, and from windows of which kind."""

    tokens: Tokens
    """The text; documents begin with BOS."""
    token_bytes: TokenBytes
    """Bytes of each target; only targets are charged."""
    context: int
    """Tokens of a window."""
    stride: int | None = None
    """Targets between the ends of windows; None is `context`, plain evaluation."""
    tail: Tail | None = None
    """Whether targets after the last whole context are scored; None as `windows.default_tail`."""
    documents: Indices | None = None
    """Positions of the documents' starts, to mask each from the others; None masks none. With masks
    the model's angles must not depend on the length of its input (`LanguageModel.use_rope`)."""
    audited_bytes: int | None = None
    """Bytes that an audit found for the planned targets; checked before anything is scored."""
    limit_tokens: int = 0
    """Number of targets to plan for, the first ones; 0 takes all."""
    batch_tokens: int = 0
    """Most tokens that go through the model at once; 0 chooses by device."""
    rope: str = ""
    """How positions are scaled, in words, for the result."""
    per_token: bool = False
    """Whether to keep each target's loss."""
    progress: Progress = silent
    phase: str = "score"

    def __post_init__(self) -> None:
        if self.batch_tokens < 0:
            raise ConfigError(f"batch_tokens={self.batch_tokens} must not be negative")

    def plan(self, *, stride: int | None = None, head: int = 0) -> Plan:
        """The windows; see `windows.plan_windows`.

        Raises:
            ConfigError: the settings make no plan.
        """
        return plan_windows(
            len(self.tokens),
            context=self.context,
            stride=self.stride if stride is None else stride,
            tail=self.tail,
            limit_tokens=self.limit_tokens,
            head=head,
            documents=self.documents,
        )

    def options(self, plan: Plan) -> dict[str, Any]:
        """Arguments of a scorer of `plan`, a plan of this reading.

        Raises:
            AccountingError: the planned bytes are not `audited_bytes`, or there are none.
        """
        charged = self.token_bytes.charged(self.tokens, 0, plan.targets)
        if self.audited_bytes is not None and charged != self.audited_bytes:
            raise AccountingError(
                f"the {plan.targets:,} targets are charged {charged:,} bytes, but the text that "
                f"they stand for has {self.audited_bytes:,}; bits per byte would be wrong"
            )
        if charged == 0:
            raise AccountingError(f"the {plan.targets:,} targets stand for no bytes of text")
        return {
            "tokens": self.tokens,
            "token_bytes": self.token_bytes,
            "plan": plan,
            "batch_tokens": self.batch_tokens,
            "shorten": self.documents is not None,
            "per_token": self.per_token,
            "progress": self.progress,
            "phase": self.phase,
        }

    def scorer(self, forward: Forward, plan: Plan, *, lanes: Lanes = "text") -> Scorer:
        """A scorer of `plan`, a plan of this reading.

        Raises:
            AccountingError: see `options`.
        """
        return Scorer(forward, lanes=lanes, **self.options(plan))

    def finish(
        self, scorer: Scorer, adaptation: str = "none", details: dict[str, Any] | None = None
    ) -> Score:
        """The sums over all ranks, with how they were made.

        Raises:
            LimitError: the loss is not finite.
        """
        masked = self.documents is not None
        return scorer.finish(
            tail="score" if masked else self.tail or default_tail(self.context, self.stride),
            documents="masked" if masked else "packed",
            rope=self.rope,
            adaptation=adaptation,
            details=details,
        )
