"""Linear classifiers on frozen features: SGD with a learning-rate sweep, or logistic regression by L-BFGS.

    min over W [C, F], b [C] of  mean_i cross_entropy(W h_i + b, y_i)  (+ |W|^2 / (2 c N) for logistic regression)

What is swept (learning rate, c) is chosen on validation samples; the test samples are looked at once, at the end.
Features may be standardised; the head that comes back takes features as they are (the scaling is folded into it).

Letters: N samples, F feature, C classes, S settings of the sweep (all trained at once).
Reference: Caron et al. 2021, arXiv:2104.14294, Section 4.1 (sweep); Kornblith et al. 2019, arXiv:1805.08974 (L-BFGS).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_fast.eval.knn import check_features, check_labels

SOLVERS = ("sgd", "logistic")
_ROWS = 4096  # rows of logits held at a time


@dataclass
class LinearProbeConfig:
    """How the linear classifier is fitted and which settings compete on the validation samples."""

    solver: str = "sgd"  # sgd | logistic
    standardize: bool = True  # zero mean and unit variance per feature, from the training features
    epochs: int = 100  # sgd: passes over the training features
    batch_size: int = 256  # sgd
    momentum: float = 0.9  # sgd
    weight_decay: float = 0.0  # sgd: on the weight, not on the bias
    learning_rates: list[float] = field(default_factory=lambda: [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3])  # sgd
    c: list[float] = field(default_factory=lambda: [0.001, 0.01, 0.1, 1.0])  # logistic: the sweep, scikit-learn's C
    max_iterations: int = 200  # logistic: L-BFGS iterations for each c
    validation_fraction: float = 0.1  # held out of the training features when no validation features are given
    seed: int = 0  # order of the batches and the held-out samples

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver: expected one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected between 0 and 1, got {self.validation_fraction}")
        for name, values in (("learning_rates", self.learning_rates), ("c", self.c)):
            if not values or min(values) <= 0:
                raise ValueError(f"{name}: expected at least one positive number, got {list(values)}")
        for name, count in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")


def linear_probe(
    train_h: Tensor,  # [N, F]
    train_y: Tensor | None,  # [N] int64
    test_h: Tensor,  # [Q, F]
    test_y: Tensor | None,  # [Q] int64
    config: LinearProbeConfig | None = None,
    *,
    val_h: Tensor | None = None,  # [M, F]
    val_y: Tensor | None = None,  # [M] int64
    layer: str = "backbone feature h",
) -> tuple[dict[str, Any], nn.Linear]:
    """Fit on the training features, choose on the validation features, score on the test features.

    Without validation features a class-balanced share of the training features is held out for the choice,
    and the chosen setting is fitted again on all of them.

    Returns:
        {"top1", "top5" (only with more than five classes), "val_top1", "train_top1", "protocol"} with accuracies
        in [0, 1], and the head: logits = head(h) for unstandardised h.

    Raises:
        ValueError: labels missing, shapes that do not fit, or a feature that is not finite.
        RuntimeError: every setting diverged.
    """
    config = config or LinearProbeConfig()
    train_y = check_labels("train_y", train_y, len(train_h)).to(train_h.device)
    test_y = check_labels("test_y", test_y, len(test_h)).to(test_h.device)
    check_features(train_h, test_h)
    num_classes = int(train_y.max()) + 1
    held_out = val_h is None
    if val_h is None:
        fit, kept = _stratified_split(train_y, config.validation_fraction, config.seed)
        fit_h, fit_y, val_h, val_y = train_h[fit], train_y[fit], train_h[kept], train_y[kept]
    else:
        fit_h, fit_y = train_h, train_y
        val_y = check_labels("val_y", val_y, len(val_h)).to(val_h.device)
        check_features(train_h, val_h)
    settings = list(config.learning_rates if config.solver == "sgd" else config.c)
    heads = _fit(fit_h, fit_y, num_classes, settings, config)
    chosen, val_top1 = _choose(heads, val_h, val_y)
    head = _fit(train_h, train_y, num_classes, [settings[chosen]], config)[0] if held_out else heads[chosen]
    scores = _accuracy(head, test_h, test_y, num_classes)
    scores["val_top1"] = val_top1
    scores["train_top1"] = _accuracy(head, train_h, train_y, num_classes)["top1"]
    scores["protocol"] = _protocol(config, settings, chosen, held_out, layer) | {
        "num_train": len(train_h),
        "num_val": len(val_h),
        "num_test": len(test_h),
        "num_classes": num_classes,
    }
    return scores, head


def _fit(
    h: Tensor,  # [N, F]
    y: Tensor,  # [N] int64
    num_classes: int,
    settings: list[float],
    config: LinearProbeConfig,
) -> list[nn.Linear]:
    """One head for each setting, all for unstandardised features."""
    mean, std = _moments(h) if config.standardize else (torch.zeros_like(h[0]), torch.ones_like(h[0]))
    z = (h - mean) / std
    solve = _sgd if config.solver == "sgd" else _logistic
    with torch.enable_grad(), torch.autocast(h.device.type, enabled=False):
        weights, biases = solve(z, y, num_classes, settings, config)
    heads = []
    for weight, bias in zip(weights, biases, strict=True):
        head = nn.Linear(h.shape[1], num_classes, device="meta").to_empty(device=h.device)
        with torch.no_grad():
            head.weight.copy_(weight / std)
            head.bias.copy_(bias - head.weight @ mean)
        heads.append(head)
    return heads


def _sgd(
    z: Tensor,  # [N, F]
    y: Tensor,  # [N] int64
    num_classes: int,
    settings: list[float],
    config: LinearProbeConfig,
) -> tuple[list[Tensor], list[Tensor]]:
    """All learning rates at once: their heads share each batch and its matrix product. Cosine schedule to zero."""
    weights = [z.new_zeros(num_classes, z.shape[1]).requires_grad_() for _ in settings]
    biases = [z.new_zeros(num_classes).requires_grad_() for _ in settings]
    groups = [
        {"params": [parameter], "lr": rate, "weight_decay": decay}
        for parameters, decay in ((weights, config.weight_decay), (biases, 0.0))
        for parameter, rate in zip(parameters, settings, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=config.momentum)
    steps = config.epochs * math.ceil(len(z) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        order = torch.randperm(len(z), generator=generator).to(z.device)
        for rows in torch.split(order, config.batch_size):
            logits = F.linear(z[rows], torch.cat(weights), torch.cat(biases)).view(-1, num_classes)  # [B * S, C]
            # The mean over B * S, times S, is the sum of each head's own mean loss: heads do not see each other.
            loss = F.cross_entropy(logits, y[rows].repeat_interleave(len(settings))) * len(settings)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return [weight.detach() for weight in weights], [bias.detach() for bias in biases]


def _logistic(
    z: Tensor,  # [N, F]
    y: Tensor,  # [N] int64
    num_classes: int,
    settings: list[float],
    config: LinearProbeConfig,
) -> tuple[list[Tensor], list[Tensor]]:
    """Full-batch L-BFGS for each c, from the strongest penalty to the weakest, each started at the last solution."""
    solution: dict[float, tuple[Tensor, Tensor]] = {}
    weight = z.new_zeros(num_classes, z.shape[1]).requires_grad_()
    bias = z.new_zeros(num_classes).requires_grad_()
    for c in sorted(settings):
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=config.max_iterations,
            tolerance_grad=1e-6,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def closure(penalty: float = 1 / (2 * c * len(z)), optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            total = penalty * weight.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            total = total.detach()
            for rows, labels in zip(torch.split(z, _ROWS), torch.split(y, _ROWS), strict=True):
                loss = F.cross_entropy(F.linear(rows, weight, bias), labels, reduction="sum") / len(z)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            return total

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        solution[c] = weight.detach().clone(), bias.detach().clone()
    return [solution[c][0] for c in settings], [solution[c][1] for c in settings]


def _choose(
    heads: list[nn.Linear],
    h: Tensor,  # [M, F]
    y: Tensor,  # [M] int64
) -> tuple[int, float]:
    """The head of best top-1; of equals, the one of smaller loss."""
    ranked = []
    for number, head in enumerate(heads):
        logits = _logits(head, h)
        if logits.isfinite().all():
            loss = _cross_entropy(logits, y)
            top1 = (logits.argmax(1) == y).double().mean().item()
            ranked.append((-top1, loss, number))
    if not ranked:
        raise RuntimeError("linear_probe: every setting diverged; expected smaller learning_rates")
    top1, _, number = min(ranked)
    return number, -top1


def _cross_entropy(
    logits: Tensor,  # [M, C]
    y: Tensor,  # [M] int64; a class that training never saw costs infinity
) -> float:
    if int(y.max()) >= logits.shape[1]:
        return math.inf
    return F.cross_entropy(logits, y).item()


@torch.no_grad()
def _logits(
    head: nn.Linear,
    h: Tensor,  # [Q, F]
) -> Tensor:
    return torch.cat([head(rows) for rows in torch.split(h.to(head.weight.device), _ROWS)])


def _accuracy(
    head: nn.Linear,
    h: Tensor,  # [Q, F]
    y: Tensor,  # [Q] int64
    num_classes: int,
) -> dict[str, Any]:
    """Top-1, and top-5 where it says something."""
    ranked = _logits(head, h).topk(min(5, num_classes), dim=1).indices
    hit = ranked == y.to(ranked.device)[:, None]
    scores = {"top1": hit[:, 0].double().mean().item()}
    return scores | ({"top5": hit.any(1).double().mean().item()} if num_classes > 5 else {})


def _moments(
    h: Tensor,  # [N, F]
) -> tuple[Tensor, Tensor]:
    """Mean [F] and standard deviation [F]; a feature that hardly varies keeps its scale instead of blowing noise up."""
    std, mean = torch.std_mean(h.double(), dim=0, correction=0)
    return mean.to(h.dtype), torch.where(std > 1e-6 * std.max(), std, 1.0).to(h.dtype)


def _stratified_split(
    y: Tensor,  # [N] int64
    fraction: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Rows to fit and rows to hold out, both ascending: of each class its share, but never its last sample."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    labels = y.cpu()
    held = []
    for c in sorted(set(labels.tolist())):
        rows = order[labels[order] == c]
        held.append(rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)])
    kept = torch.zeros(len(y), dtype=torch.bool)
    kept[torch.cat(held)] = True
    if not kept.any():
        raise ValueError("train_y: expected two samples of some class to hold one out for validation, got one of each")
    return (~kept).nonzero().squeeze(1).to(y.device), kept.nonzero().squeeze(1).to(y.device)


def _protocol(
    config: LinearProbeConfig,
    settings: list[float],
    chosen: int,
    held_out: bool,
    layer: str,
) -> dict[str, Any]:
    """The choices that a probe's score depends on, in words and numbers."""
    own = {
        "sgd": ("epochs", "batch_size", "momentum", "weight_decay"),
        "logistic": ("max_iterations",),
    }[config.solver]
    swept = "learning_rate" if config.solver == "sgd" else "c"
    return {
        "classifier": f"linear, {config.solver}" + (", cosine schedule" if config.solver == "sgd" else ", L-BFGS"),
        **{key: value for key, value in asdict(config).items() if key in own},
        swept: settings[chosen],
        f"{swept}_candidates": settings,
        "chosen_on": f"{config.validation_fraction} of the training samples, held out; fitted again on all of them"
        if held_out
        else "the validation split",
        "feature_layer": layer,
        "normalisation": "standardised per feature with the training samples' mean and deviation"
        if config.standardize
        else "none",
        "augmentation": "none: features are extracted once",
        "seed": config.seed,
    }
