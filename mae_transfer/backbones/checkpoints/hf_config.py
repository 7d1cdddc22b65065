"""What the `config.json` and `preprocessor_config.json` of a Hugging Face or timm model say of the weights beside them.

Weights alone show neither the number of heads nor LayerNorm eps, activation or normalisation statistics.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_transfer.errors import UserError

_GELU = ("gelu", "gelu_python")


@dataclass
class HFConfig:
    """`config`: the model's, of transformers or timm; `processor`: the image processor's. Empty where there is none."""

    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)

    def facts(self, hugging_face: bool) -> dict[str, Any]:
        """`Converted.facts` of the weights beside it, for a file in one of transformers' layouts or another.

        Raises UserError for an activation that the encoder does not have.
        """
        facts: dict[str, Any] = {}
        if hugging_face and "model_type" in self.config:
            names = {"num_attention_heads": "num_heads", "layer_norm_eps": "eps"}
            facts = {new: self.config[old] for old, new in names.items() if self.config.get(old) is not None}
            activation = self.config.get("hidden_act", "gelu")
            if activation not in _GELU:
                raise UserError(f"its config.json has hidden_act {activation!r}; only gelu is supported.")
        timm = self.config.get("pretrained_cfg")
        statistics = self.processor if hugging_face else timm if isinstance(timm, dict) else {}
        for part in ("mean", "std"):
            value = statistics.get(part, statistics.get(f"image_{part}"))
            if isinstance(value, list) and len(value) == 3:
                facts[part] = tuple(float(number) for number in value)
        return facts


def beside(path: Path) -> HFConfig:
    """The configuration files in the folder of a weights file; raises UserError if one cannot be read."""
    return HFConfig(_read(path.parent / "config.json"), _read(path.parent / "preprocessor_config.json"))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); restore it or take it away.") from error
    return content if isinstance(content, dict) else {}
