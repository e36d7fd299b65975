"""Every error that input can cause. The command line turns each into one line and an exit status.

An error's message names the thing, what was found, what was needed, and the way out. Anything that
is not in this family is a bug of ours and keeps its traceback.

Messages are written with options, as one types them. Whoever calls from Python reads the arguments
of the same names instead, wherever the message is shown.
"""

import re
from typing import ClassVar

OPTION = re.compile(r"gptpack [a-z][^,;']*|(?<![\w./-])--([a-z][a-z-]*)")
"""A command to type, which stays as it is, or the name of an option."""
ARGUMENTS = {
    "bpb": "prove=True",
    "codec": "codecs",
    "delta-factor": "delta_factors",
    "force": "force=True",
    "keep-packed": "keep_packed=True",
    "method": "methods",
    "no-compile": "compiled=False",
    "no-eval": "validate=False",
    "no-keep": "keep=False",
    "plan": "plan=True",
    "resume": "resume=True",
    "set": "overrides",
    "ttt": "adaptations",
}
"""The arguments of options whose name says another one, or a flag; of others dashes differ."""


class GptpackError(ValueError):
    """Root of the family; `exit_status` is what the process ends with (docs/cli.md)."""

    exit_status: ClassVar[int] = 2
    in_options: ClassVar[bool] = False
    """Whether messages name options, as while a command runs, or arguments of functions."""

    def __str__(self) -> str:
        return spoken(super().__str__())


class ConfigError(GptpackError):
    """A configuration value, a recipe or an option does not make sense."""


class DataError(GptpackError):
    """Text, tokens, shards or a manifest are not what they claim to be."""


class ShardError(DataError):
    """A token shard is malformed."""


class TokenizerError(DataError):
    """A tokenizer cannot be read, trained, or does not fit the data or the model."""


class AccountingError(DataError):
    """The bytes that the scored tokens stand for are not the bytes of the text."""


class CheckpointError(GptpackError):
    """A checkpoint has missing, extra, misshapen or non-finite tensors, or cannot be read."""


class TrainingError(GptpackError):
    """Training cannot go on: the loss is not finite, or the run directory is not usable."""

    exit_status = 1


class QuantError(GptpackError):
    """A tensor cannot be quantized as asked."""


class BudgetError(GptpackError):
    """No artifact fits the budget."""

    exit_status = 1


class LimitError(GptpackError):
    """A measured value is worse than the limit that was asked for."""

    exit_status = 1


class ArtifactError(GptpackError):
    """An artifact is corrupt or hostile."""

    exit_status = 3


class NotPackedError(ArtifactError):
    """A model in another form stands where a packed file is needed."""

    exit_status = 2


class MissingDependencyError(GptpackError):
    """The environment lacks something that was asked for."""

    exit_status = 4


class InternalError(GptpackError):
    """A process that we started crashed, which is a bug of ours."""

    exit_status = 70


def spoken(text: str) -> str:
    """`text` for whoever reads it here: with options as they are, or with arguments in place."""
    if GptpackError.in_options:
        return text

    def argument(found: re.Match[str]) -> str:
        name = found[1]
        return found[0] if name is None else ARGUMENTS.get(name, name.replace("-", "_"))

    return OPTION.sub(argument, text)


def error_of(status: int) -> type[GptpackError]:
    """The error that a command of ours ended with, by its exit status."""
    known = (ArtifactError, MissingDependencyError, InternalError)
    return next((error for error in known if error.exit_status == status), GptpackError)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a failed allocation: Python's, numpy's, or torch's on a CPU or a GPU."""
    torch_on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or torch_on_cpu
    )


def lacks_compiler(error: BaseException) -> bool:
    """Whether torch's or Triton's compiler found none of C or C++, as in a small container."""
    return any(said in str(error) for said in ("InvalidCxxCompiler", "Failed to find C compiler"))
