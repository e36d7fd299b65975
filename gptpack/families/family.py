"""A family's name and plain values <-> the configuration of a model of it, without torch."""

from collections.abc import Mapping
from typing import Any

from gptpack.families.golf.config import ModelConfig
from gptpack.families.modules.config import ModuleConfig
from gptpack.families.transformers.config import TransformersConfig
from gptpack.values import from_dict, non_default, to_dict

FamilyConfig = ModelConfig | TransformersConfig | ModuleConfig
"""A configuration of any family; it has `vocab`, `context` (tokens) and `bos`."""

FAMILIES: dict[str, type[FamilyConfig]] = {
    "golf": ModelConfig,
    "transformers": TransformersConfig,
    "module": ModuleConfig,
}


def family_of(config: FamilyConfig) -> str:
    """The name of the family that `config` belongs to."""
    return next(name for name, kind in FAMILIES.items() if type(config) is kind)


def config_of(family: str, values: Mapping[str, Any]) -> FamilyConfig:
    """The configuration that `model_values` wrote.

    Raises:
        ConfigError: `values` are none of this family.
    """
    return from_dict(FAMILIES[family], values, "model")


def model_values(config: FamilyConfig) -> dict[str, Any]:
    """Plain values of `config` for a header; golf leaves out what is as in its defaults."""
    return non_default(config) if isinstance(config, ModelConfig) else to_dict(config)
