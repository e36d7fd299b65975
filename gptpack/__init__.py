"""Train, pack and prove small GPT language models under a byte budget."""

from gptpack.version import VERSION as __version__

__all__ = ["__version__"]
