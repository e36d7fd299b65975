"""A packed folder -> a model of transformers: importing this module registers its quantizer.

    import gptpack.hf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("folder")

The folder is what ``gptpack unpack FILE --to transformers --keep-packed`` writes: the packed file
is the folder's only tensor, under the name of the token embedding and in no shape of one. Where
this module was not imported, transformers therefore ends with an error, whatever type is asked for.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gptpack.errors import ConfigError, MissingDependencyError
from gptpack.families.transformers.folder import QUANT_METHOD
from gptpack.jobs.load import load_packed

try:
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as missing:
    raise MissingDependencyError(
        "gptpack.hf needs transformers 5.9 or newer; run: pip install 'gptpack[hf]'"
    ) from missing


@register_quantization_config(QUANT_METHOD)
class GptpackConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a packed folder; the file itself says all the rest."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.dequantize = True
        """Once loaded the model is an ordinary one, and is saved as one."""


@register_quantizer(QUANT_METHOD)
class GptpackQuantizer(HfQuantizer):
    """Decodes the packed file while transformers loads a folder; all checksums are verified.

    Raises:
        ConfigError: a device map leaves weights elsewhere than on a device.
        ArtifactError: the packed bytes are corrupt or hostile.
    """

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        # the folder names no type, so that transformers takes that of the packed bytes
        return dtype if dtype.is_floating_point else torch.float32

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether a tensor may have another shape than its parameter; the packed bytes do."""
        return True

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        table = model.get_input_embeddings().weight
        self._shape, self._dtype = table.shape, table.dtype
        # all else comes out of the packed bytes, so that nothing is missing
        model._keys_to_ignore_on_load_missing = [".*"]
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        tokens = model.get_input_embeddings()
        packed = tokens.weight
        with tempfile.TemporaryDirectory(prefix="gptpack-") as folder:
            path = Path(folder) / "model.gptpack"
            path.write_bytes(packed.cpu().numpy().tobytes())
            weights = load_packed(path).state_dict()
        empty = torch.empty(self._shape, dtype=self._dtype, device=packed.device)
        tokens.weight = nn.Parameter(empty)
        model.tie_weights()
        if any(weight.is_meta for weight in model.parameters()):
            raise ConfigError("a packed folder is decoded into memory; leave offloading out")
        model.load_state_dict(weights)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
