"""A method's first step beside an independent implementation of it: the same weights and views, both losses and
gradients.

The oracle is a module whose networks have the method's names (`backbone`, `projector`, ...), whatever their classes;
its forward takes the batch and returns the loss. With SSL_FAST_WRITE_METHODS=1 in the environment the differences found
are written into the row of the method in docs/methods.md.
"""

import copy
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_fast.data.views import Batch
from ssl_fast.methods.base import Method
from tests.train.runs import make_method

PAGE = Path(__file__).resolve().parents[3] / "docs" / "methods.md"
TOLERANCE = 1e-5


def make_pair(name: str, head_norm: str = "batch", **networks: nn.Module) -> tuple[Method, nn.Module]:
    """A small method with batch normalisation, and a module with a copy of its backbone and the networks given.

    A teacher is moved away from its student, so that the two cannot be confused.
    """
    method = make_method(name, norm="batch", head_norm=head_norm)
    method.stacked_views = False  # batch statistics of one view at a time, as elsewhere
    if hasattr(method, "teacher"):
        generator = torch.Generator().manual_seed(1)
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    oracle = nn.Module()
    oracle.backbone = copy.deepcopy(method.backbone)
    for key, network in networks.items():
        oracle.add_module(key, network)
    return method, oracle


def batch_of(method: Method, count: int = 12, labels: Tensor | None = None) -> Batch:
    """Random views of the sizes that the method asks for."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(count, 3, v.size, v.size, generator=generator) for v in method.views(method.config)]
    return Batch(tuple(views), labels, torch.arange(count))


def compare(method: Method, oracle: nn.Module, loss: Any, batch: Batch) -> None:
    """Asserts that the first step's loss and gradients agree to 1e-5 in fp32, relative to the largest of each.

    Args:
        loss: called with the batch; the oracle's loss in the method's convention.
    """
    pairs = matched(method, oracle)
    method.before_step(0.0)
    _, losses = method(batch, 0.0)
    losses["loss"].backward()
    expected = loss(batch)
    expected.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    found = [(p.grad, q.grad) for p, q in pairs if p.requires_grad]
    assert len(found) == sum(p.requires_grad for p in method.parameters()), "a parameter has no counterpart"
    largest = max(float(g.abs().max()) for _, g in found)
    gradient = max(float((a - b).abs().max()) for a, b in found) / largest
    value = float((losses["loss"].detach() / expected.detach() - 1).abs())
    record(method.config.name, value, gradient)
    assert value <= TOLERANCE, f"loss differs by {value:.1e}"
    assert gradient <= TOLERANCE, f"gradients differ by {gradient:.1e}"


def matched(method: Method, oracle: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Copies the method's weights into the oracle's networks of the same name, layer by layer; the pairs copied.

    A scale, shift or bias that the method does not have is 1 or 0 in the oracle.
    """
    pairs = []
    for name, network in oracle.named_children():
        mine, theirs = layers(getattr(method, name)), layers(network)
        assert len(mine) == len(theirs), f"{name}: {len(mine)} layers and {len(theirs)}"
        for a, b in zip(mine, theirs, strict=True):
            for key, default in (("weight", 1.0), ("bias", 0.0)):
                ours, other = getattr(a, key, None), getattr(b, key, None)
                if other is None:
                    assert ours is None, f"{name}: {type(b).__name__} lacks {key}"
                    continue
                with torch.no_grad():
                    other.copy_(torch.full_like(other, default) if ours is None else ours)
                if ours is not None:
                    pairs.append((ours, other))
    return pairs


def layers(network: nn.Module) -> list[nn.Module]:
    """All layers with weights of their own, in order; norms without them too."""
    return [m for m in network.modules() if hasattr(m, "weight")]


def record_all(name: str, loss: Tensor, expected: Tensor, gradients: dict[str, Tensor], wanted: dict[str, Any]) -> None:
    """`record` of a loss and of gradients by name, beside the oracle's."""
    largest = max(float(g.abs().max()) for g in wanted.values())
    gradient = max(float((gradients[key] - g).abs().max()) for key, g in wanted.items()) / largest
    record(name, float((loss.detach() / expected.detach() - 1).abs()), gradient)


def record(name: str, loss: float, gradient: float) -> None:
    """Writes the two differences into the last cells of the method's row in docs/methods.md, when asked to."""
    if not os.environ.get("SSL_FAST_WRITE_METHODS"):
        return
    text, count = re.subn(
        rf"^(\| `{name}` \|.*\|)[^|]*\|[^|]*\|$", rf"\g<1> {loss:.1e} | {gradient:.1e} |", PAGE.read_text(), flags=re.M
    )
    assert count == 1, f"docs/methods.md needs one row of {name}"
    PAGE.write_text(text)
