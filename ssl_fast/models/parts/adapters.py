"""LoRA and IA3: a few new weights learn while those of the network stay; afterwards they are folded into it.

    LoRA: W + (alpha / rank) B A,   A: [rank, in], B: [out, rank], B = 0 at first
    IA3:  l * (W x)  on the attention's projection,  W (l * x)  on the last layer of an MLP or branch,   l = 1 at first

The layers are peft's. What they are put on depends on the family, unless `lora_targets` says.

Reference: Hu et al. 2021, arXiv:2106.09685, Eq. 3; Liu et al. 2022, arXiv:2205.05638, section 3.3.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn

from ssl_fast.models.parts.families import require

# family -> modules (a pattern of the whole name) that LoRA is put on
LORA = {
    "resnet": r"layer\d\.\d+\.conv\d",
    "convnext": r"stages\.\d\.blocks\.\d+\.mlp\.fc[12]",
    "swin": r"layers\.\d\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
    "swinv2": r"layers\.\d\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
    "vit": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
    "eva": r"blocks\.\d+\.(attn\.(qkv|[qkv]_proj|proj)|mlp\.fc(1|2|1_g|1_x))",
}
# family -> modules whose output IA3 scales, and modules whose input it scales. A norm after a convolution would undo a
# scale of its output, so in ResNets it is the input everywhere.
IA3 = {
    "resnet": ("", r"layer\d\.\d+\.conv[23]"),
    "convnext": ("", r"stages\.\d\.blocks\.\d+\.mlp\.fc2"),
    "swin": (r"layers\.\d\.blocks\.\d+\.attn\.qkv", r"layers\.\d\.blocks\.\d+\.mlp\.fc2"),
    "swinv2": (r"layers\.\d\.blocks\.\d+\.attn\.qkv", r"layers\.\d\.blocks\.\d+\.mlp\.fc2"),
    "vit": (r"blocks\.\d+\.attn\.qkv", r"blocks\.\d+\.mlp\.fc2"),
    "eva": (r"blocks\.\d+\.attn\.(qkv|[kv]_proj)", r"blocks\.\d+\.mlp\.fc2"),
}


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("backbone.lora_rank and backbone.ia3 need peft: pip install ssl_fast[recipes]") from error
    return peft


def add_lora(model: nn.Module, name: str, *, rank: int, alpha: float, targets: str) -> None:
    """Puts LoRA on linear layers and convolutions, in place, and freezes everything else.

    Args:
        alpha: the update is scaled by alpha / rank; 0 means the rank.
        targets: pattern that the whole name of a module must match; "" for the family's.

    Raises:
        ValueError: another family, or a pattern that matches nothing.
        ImportError: without peft.
    """
    family = require(model, f"lora_rank={rank}", tuple(LORA), name)
    pattern = targets or LORA[family]
    if not _matching(model, pattern):
        raise ValueError(f"backbone.lora_targets: no linear layer or convolution of {name} matches {pattern!r}")
    config = _peft().LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=pattern)
    _inject(model, config)


def add_ia3(model: nn.Module, name: str) -> None:
    """Puts IA3 on the family's layers, in place, and freezes everything else.

    Raises:
        ValueError: another family.
        ImportError: without peft.
    """
    outputs, inputs = IA3[require(model, "ia3", tuple(IA3), name)]
    feedforward = _matching(model, inputs)
    names = (_matching(model, outputs) if outputs else []) + feedforward
    _inject(model, _peft().IA3Config(target_modules=names, feedforward_modules=feedforward))


def _matching(model: nn.Module, pattern: str) -> list[str]:
    kinds = (nn.Linear, nn.Conv2d)
    return [name for name, m in model.named_modules() if isinstance(m, kinds) and re.fullmatch(pattern, name)]


def _inject(model: nn.Module, config: Any) -> None:
    module: Any
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True  # timm then calls the layer, and does not reach for its weight
    _peft().inject_adapter_in_model(config, model)


def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` with its adapters folded into the weights, under timm's bare names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
    return model.requires_grad_()
