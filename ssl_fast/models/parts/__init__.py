"""Parts that a configuration puts into a timm network: attention, mixed styles, fewer tokens, adapters."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from ssl_fast.models.parts.adapters import add_ia3, add_lora
from ssl_fast.models.parts.cbam import add_cbam
from ssl_fast.models.parts.mixstyle import add_mixstyle
from ssl_fast.models.parts.token_learner import add_token_learner
from ssl_fast.models.parts.token_merging import add_token_merging

__all__ = ["PartsConfig", "add_adapters", "add_parts", "check_parts"]


class PartsConfig(Protocol):
    """The fields of `BackboneConfig` that name parts."""

    name: str
    attention: str
    mixstyle: float
    merge_tokens: str
    learn_tokens: int
    lora_rank: int
    lora_alpha: float
    lora_targets: str
    ia3: bool


def check_parts(config: PartsConfig) -> None:
    """Raises ValueError for values that no network could take."""
    if config.attention not in ("", "cbam"):
        raise ValueError(f'backbone.attention must be cbam or "", got {config.attention!r}')
    if not 0.0 <= config.mixstyle <= 1.0:
        raise ValueError(f"backbone.mixstyle must be a probability in [0, 1], got {config.mixstyle}")
    for name in ("learn_tokens", "lora_rank", "lora_alpha"):
        if getattr(config, name) < 0:
            raise ValueError(f"backbone.{name} must be 0 (off) or positive, got {getattr(config, name)}")
    if config.merge_tokens and config.learn_tokens:
        raise ValueError("backbone.merge_tokens and backbone.learn_tokens both make tokens fewer; give one")
    if config.lora_rank and config.ia3:
        raise ValueError("backbone.lora_rank and backbone.ia3 are two kinds of adapters; give one")


def add_parts(model: nn.Module, config: PartsConfig) -> None:
    """Puts what `config` names into `model`, in place, all but adapters.

    Raises:
        ValueError: a part that does not go into this family; the message names models that work.
    """
    if config.attention:
        add_cbam(model, config.name)
    if config.mixstyle:
        add_mixstyle(model, config.mixstyle, config.name)
    if config.learn_tokens:
        add_token_learner(model, config.learn_tokens, config.name)
    if config.merge_tokens:
        add_token_merging(model, config.merge_tokens, config.name)


def add_adapters(model: nn.Module, config: PartsConfig) -> None:
    """Puts LoRA or IA3 on `model`, in place, once its weights are loaded; everything else is frozen.

    Raises:
        ValueError: a family without adapters, or targets that match nothing.
        ImportError: without peft.
    """
    if config.lora_rank:
        add_lora(model, config.name, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets)
    if config.ia3:
        add_ia3(model, config.name)
