"""The optimiser of a method: which one, its hyper-parameters, and its parameter groups."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class OptimizerConfig:
    """Optimiser and learning-rate schedule; each method's `Config` holds the paper's values.

    `lr` is for a batch of 256 and is multiplied by batch / 256 (`lr_scaling="linear"`, Goyal et al. 2017,
    arXiv:1706.02677), by its square root ("sqrt") or not at all ("none").
    """

    name: str = "sgd"  # sgd | lars | lamb | adamw
    lr: float = 0.03
    lr_scaling: str = "linear"
    final_lr: float = 0.0  # where the cosine ends, as a share of lr
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8  # of adamw
    weight_decay: float = 1e-4
    final_weight_decay: float | None = None  # where a cosine from weight_decay ends; None: it is constant
    trust_coefficient: float = 0.001
    sam_rho: float = 0.0  # 0: without SAM
    sam_adaptive: bool = False  # ASAM
    lookahead_k: int = 0  # 0: without Lookahead
    lookahead_alpha: float = 0.5
    centralize: bool = False  # gradient centralisation


Options = Callable[[str, nn.Parameter], dict[str, Any]]


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, options: Options | None = None
) -> list[dict[str, Any]]:
    """Weights, which decay, and biases and norms (one-dimensional), which do not; apart where `options` differ.

    A group that does not decay carries `adapt=False`: LARS leaves its learning rate alone, as SimCLR and BYOL do.

    Args:
        options: of a parameter by its name: "lr_scale", "fixed_lr" (both read by `scheduled_`), "decay" (bool).

    Raises:
        ValueError: an option of another name.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        own = options(name, parameter) if options else {}
        if unknown := own.keys() - {"lr_scale", "fixed_lr", "decay"}:
            raise ValueError(f"options of {name}: expected lr_scale, fixed_lr or decay, got {min(unknown)!r}")
        decay = own.get("decay", parameter.ndim > 1)
        kept = {key: value for key, value in own.items() if key != "decay"}
        fresh = {"params": [], "weight_decay": weight_decay if decay else 0.0, "decays": decay, **kept}
        fresh |= {} if decay else {"adapt": False}
        groups.setdefault((not decay, *sorted(kept.items())), fresh)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=repr)]


def scheduled_(optimizer: torch.optim.Optimizer, lr: float, base_lr: float, weight_decay: float) -> None:
    """Sets the learning rate and the decay of every group for the step to come.

    Args:
        lr: of groups that follow the schedule; times their "lr_scale".
        base_lr: of groups with "fixed_lr".
        weight_decay: of groups that decay.
    """
    for group in optimizer.param_groups:
        group["lr"] = (base_lr if group.get("fixed_lr") else lr) * group.get("lr_scale", 1.0)
        if group["decays"]:
            group["weight_decay"] = weight_decay


def build_optimizer(
    config: OptimizerConfig,
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    *,
    freeze: Iterable[nn.Module] = (),
    options: Options | None = None,
) -> torch.optim.Optimizer:
    """The optimiser over `parameter_groups(named)` at learning rate `lr`, with what the configuration puts around it.

    From the inside out: SAM, gradient centralisation (of both of SAM's passes), Lookahead.

    Args:
        options: see `parameter_groups`.
        freeze: modules whose batch statistics SAM's second pass does not record.
    """
    groups = parameter_groups(named, config.weight_decay, options)
    if config.sam_rho > 0:
        from ssl_fast.optim.sam import SAM

        adaptive = config.sam_adaptive
        optimizer: torch.optim.Optimizer = SAM(
            groups, lambda groups: _base(config, groups, lr), config.sam_rho, adaptive, freeze=freeze
        )
    else:
        optimizer = _base(config, groups, lr)
    if config.centralize:
        from ssl_fast.optim.centralize import GradientCentralization

        optimizer = GradientCentralization(optimizer)
    if config.lookahead_k > 0:
        from ssl_fast.optim.lookahead import Lookahead

        optimizer = Lookahead(optimizer, config.lookahead_k, config.lookahead_alpha)
    return optimizer


def _base(config: OptimizerConfig, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.epsilon)
    if config.name == "lars":
        from ssl_fast.optim.lars import LARS

        return LARS(groups, lr=lr, momentum=config.momentum, trust_coefficient=config.trust_coefficient)
    if config.name == "lamb":
        from ssl_fast.optim.lamb import LAMB

        return LAMB(groups, lr=lr, betas=config.betas)
    raise ValueError(f"optimizer.name: expected sgd, lars, lamb or adamw, got {config.name!r}")
