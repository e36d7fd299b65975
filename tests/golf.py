"""Small models of our own family, one for each switch of its configuration."""

from typing import Any

import torch

from gptpack.families.golf.config import ModelConfig
from gptpack.families.golf.gpt import GPT, model_of

SMALL: dict[str, Any] = {
    "vocab": 40,
    "layers": 3,
    "width": 24,
    "heads": 4,
    "kv_heads": 2,
    "mlp_hidden": 20,
    "context": 8,
}
"""A configuration that tests finish in a moment."""
PARTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "untied": {"tied_embedding": False},
    "leaky": {"activation": "leaky_relu2"},
    "xsa on the last two": {"xsa_layers": 2},
    "partial rope": {"rope_dims": 2},
    "ntk rope": {"rope_ntk_context": 4},
    "ln scale": {"ln_scale": True},
    "bigram": {"bigram_rows": 11, "bigram_width": 5},
    "smear": {"smear_gate": True},
    "leaking smear": {"smear_gate": True, "smear_across_documents": True},
    "value embedding": {"value_embedding_layers": (0, 2), "value_embedding_width": 6},
    "no sharing of values": {"kv_heads": 4},
    "one layer": {"layers": 1},
    "skip gates": {"skip_gates": True, "layers": 5},
    "attention gate": {"attention_gate_inputs": 7},
    "recurrence": {"layers": 4, "loop_start": 1, "loop_layers": 2, "loops": 2},
    "parallel": {"parallel_layers": 2},
    "two lanes": {"parallel_layers": 2, "parallel_lanes": 2, "layers": 4},
    "two lanes from the first": {"parallel_layers": 3, "parallel_lanes": 2, "skip_gates": True},
    "document mask": {"document_mask": True},
    "all": {
        "activation": "leaky_relu2",
        "xsa_layers": 3,
        "rope_dims": 4,
        "rope_ntk_context": 4,
        "ln_scale": True,
        "bigram_rows": 11,
        "bigram_width": 5,
        "smear_gate": True,
        "value_embedding_layers": (1,),
        "value_embedding_width": 6,
    },
    "all of the later parts": {
        "layers": 6,
        "xsa_layers": 6,
        "skip_gates": True,
        "attention_gate_inputs": 12,
        "loop_start": 2,
        "loop_layers": 2,
        "loops": 1,
        "parallel_layers": 2,
        "parallel_lanes": 2,
        "document_mask": True,
        "bigram_rows": 11,
        "bigram_width": 5,
        "smear_gate": True,
        "orthogonal_init": True,
    },
}
"""Settings of each part of the model, and of many together."""


def randomized(config: ModelConfig, seed: int = 0) -> GPT:
    """A model none of whose parts is zero or the identity."""
    model = model_of(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model
