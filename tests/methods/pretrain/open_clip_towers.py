"""Our two towers beside open_clip's with the same weights, and what a first step makes of both."""

from typing import Any

import open_clip.model
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.data.views import Batch
from ssl_fast.methods.two_towers import TwoTowers
from ssl_fast.models.backbone import BackboneConfig, build_backbone
from ssl_fast.models.text import TextConfig

DIM = 16
TEXTS = ["a photo of a cat", "a dog", "two green birds on a wire", "the moon", "bread", "a red car, from behind"]


def make(cls: Any, text: TextConfig, **settings: Any) -> TwoTowers:
    """Ours, in training mode."""
    torch.manual_seed(0)
    config = cls.Config(dim=DIM, text=text, **settings)
    method: TwoTowers = cls(config, build_backbone(BackboneConfig("resnet18", width=8, depth="1,1,1,1")))
    return method.train()


def example(method: TwoTowers, side: int = 32) -> Batch:
    """Six random pictures with six texts."""
    view = torch.randn(len(TEXTS), 3, side, side, generator=torch.Generator().manual_seed(1))
    tokens = torch.from_numpy(method.tokenizer(method.config)(TEXTS))
    return Batch((view,), None, torch.arange(len(TEXTS)), {"tokens": tokens})


def peer(method: TwoTowers, log_scale: float, bias: float | None) -> Any:
    """open_clip's model, its weights replaced by ours."""
    text = method.config.text
    theirs = open_clip.model.CLIP(
        DIM,
        {"timm_model_name": "resnet18", "timm_pool": "", "timm_proj": "linear", "image_size": 32},
        {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "no_causal_mask": not text.causal,
            "pool_type": "argmax" if text.pool == "end" else "last",
        },
        init_logit_scale=log_scale,
        init_logit_bias=bias,
    )
    theirs.visual.trunk = build_backbone(method.backbone.config).model  # narrower than timm's own
    theirs.visual.head.proj = torch.nn.Linear(method.backbone.num_features, DIM, bias=False)
    missing, unexpected = theirs.load_state_dict(renamed(method.state_dict()), strict=False)
    assert not unexpected and set(missing) <= {"logit_scale", "logit_bias"}
    return theirs.train()


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names as theirs."""
    names = {"backbone.model.": "visual.trunk.", "image_projection.": "visual.head.proj.", "text_tower.model.": ""}
    names |= {"log_scale": "logit_scale", "bias": "logit_bias"}
    found = {}
    for name, tensor in state.items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        found[names[ours] + name.removeprefix(ours)] = tensor
    return found


def differences(method: TwoTowers, theirs: Any, loss: Any) -> tuple[float, float]:
    """Of a first step in fp32: of the loss, relative; the largest of any gradient, relative to that tensor's largest.

    A tensor whose gradient is nothing but rounding (a bias before a normalisation) is measured against 1e-3 of the
    largest gradient of all.
    """
    batch = example(method)
    ours = method(batch, 0.0)[1]["loss"]
    ours.backward()
    image, text = theirs.encode_image(batch.views[0]), theirs.encode_text(batch.extras["tokens"])
    numbers = [theirs.logit_scale.exp(), *([] if theirs.logit_bias is None else [theirs.logit_bias])]
    expected = loss(F.normalize(image, dim=1), F.normalize(text, dim=1), *numbers)
    expected.backward()
    gradients = renamed({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == wanted.keys()
    floor = 1e-3 * max(float(g.abs().max()) for g in wanted.values())
    worst = max(
        float((gradients[name] - g).abs().max()) / max(float(g.abs().max()), floor) for name, g in wanted.items()
    )
    return abs(ours.item() - expected.item()) / abs(expected.item()), worst
