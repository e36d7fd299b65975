"""The library transformers, imported when it is needed: offline, quiet, without remote code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from gptpack.errors import MissingDependencyError


def load_library() -> Any:
    """The module `transformers`, in a process that fetches nothing.

    Raises:
        MissingDependencyError: it is not installed.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK"):
        os.environ[name] = "1"
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "this is a model of Hugging Face's transformers, which is not installed; "
            "run: pip install 'gptpack[hf]'"
        ) from error
    return transformers


def import_model(model_type: str) -> None:
    """Import the library's module of a kind of model; one that it does not know is passed over."""
    with suppress(Exception):
        library = load_library()
        kind = type(library.AutoConfig.for_model(model_type))
        library.MODEL_FOR_CAUSAL_LM_MAPPING[kind]


def check_gguf() -> None:
    """Check that GGUF files can be read.

    Raises:
        MissingDependencyError: a package that transformers reads them by is not installed.
    """
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"reading a GGUF file needs {' and '.join(missing)}; run: pip install 'gptpack[gguf]'"
        )


@contextmanager
def quiet() -> Iterator[Any]:
    """The library, without its progress bars and warnings inside; what counts becomes an error.

    Whatever asks the hub inside fails, also where the hub's own library was imported before.
    """
    library = load_library()
    hub: Any = import_module("huggingface_hub.constants")
    offline, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    logs = library.utils.logging
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield library
    finally:
        hub.HF_HUB_OFFLINE = offline
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()
