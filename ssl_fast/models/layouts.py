"""How training codes name the tensors of a backbone in their files, and how those names become timm's.

A file is a tree of names: wrappers (`module.`), owners (`encoder_q.`, `teacher.backbone.`) and below them the network,
in timm's own names or in those of another library. The owner is found from the names themselves: it is the prefix
under which the most tensors of the wanted network lie. Where several networks lie in one file (student and teacher,
query and key encoder), the one that its authors evaluate is preferred; `owner=` chooses another.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

# Layout -> what its names are rewritten by. The first one that fits best is taken.
LAYOUTS: dict[str, tuple[Rule, ...]] = {
    # timm itself, and whatever has its names: torchvision ResNets, MoCo, SwAV, DINO, MAE, solo-learn, OpenCLIP's trunk
    "timm": (),
    # DINOv2 as trained: blocks in chunks, `blocks.0.3.` is block 3
    "DINOv2": ((r"(^|\.)blocks\.\d+\.(\d+)\.", r"\1blocks.\2."),),
    "torchvision's ViT": (
        (r"(^|\.)conv_proj\.", r"\1patch_embed.proj."),
        (r"(^|\.)class_token$", r"\1cls_token"),
        (r"(^|\.)encoder\.pos_embedding$", r"\1pos_embed"),
        (r"(^|\.)encoder\.ln\.", r"\1norm."),
        (r"(^|\.)encoder\.layers\.encoder_layer_(\d+)\.", r"\1blocks.\2."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", r".attn.qkv."),
        (r"\.self_attention\.out_proj\.", r".attn.proj."),
        (r"\.mlp\.(?:linear_1|0)\.", r".mlp.fc1."),
        (r"\.mlp\.(?:linear_2|3)\.", r".mlp.fc2."),
    ),
    "OpenCLIP's ViT": (
        (r"(^|\.)visual\.conv1\.", r"\1visual.patch_embed.proj."),
        (r"(^|\.)visual\.class_embedding$", r"\1visual.cls_token"),
        (r"(^|\.)visual\.positional_embedding$", r"\1visual.pos_embed"),
        (r"(^|\.)visual\.ln_pre\.", r"\1visual.norm_pre."),
        (r"(^|\.)visual\.ln_post\.", r"\1visual.norm."),
        (r"(^|\.)visual\.transformer\.resblocks\.", r"\1visual.blocks."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.attn\.in_proj_", r".attn.qkv."),
        (r"\.attn\.out_proj\.", r".attn.proj."),
        (r"\.mlp\.c_fc\.", r".mlp.fc1."),
        (r"\.mlp\.c_proj\.", r".mlp.fc2."),
    ),
    # nn.Sequential(*list(resnet.children())[:-1]), as in lightly's examples
    "numbered children of a ResNet": (
        (r"^((?:[^.\d][^.]*\.)*)([014567])\.", lambda found: f"{found[1]}{CHILDREN[found[2]]}."),
    ),
}  # fmt: skip

# Of several networks in a file: ours (a method's `backbone`) and teachers first, slow copies that only make keys last.
PREFERRED = (r"^method\.backbone\.", r"(^|\.)teacher\.", r"")
AVOIDED = re.compile(r"momentum|encoder_k|target|(^|\.)ema\.|_ema\.|prediction")


def owners(names: Iterable[str], own: set[str]) -> Counter[str]:
    """How many names of the network `own` lie under each prefix ("" or ending in a dot)."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def preference(owner: str) -> tuple[bool, int, int]:
    """Sorts owners of equally many tensors, the best first."""
    place = next(i for i, pattern in enumerate(PREFERRED) if re.search(pattern, owner))
    return (bool(AVOIDED.search(owner)) and place > 0, place, len(owner))


def renamed(tensors: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """The tensors under a layout's names rewritten."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = tensor
    return found


def candidates(model: nn.Module, tensors: Mapping[str, Tensor], owner: str) -> dict[tuple[str, str], dict[str, Tensor]]:
    """What the file could mean: (layout, prefix) -> tensors by timm's names, in the shapes of `model`.

    Args:
        owner: part that the prefix must contain.
    """
    own, found = set(model.state_dict()), {}
    for layout, rules in LAYOUTS.items():
        names = renamed(tensors, rules)
        counts = owners(names, own) if rules == () or names.keys() != tensors.keys() else Counter[str]()
        counts[""] += layout == "timm"  # a family's official names may share none with timm's: its converter knows them
        likely = [prefix for prefix, n in counts.items() if owner in prefix and 2 * n >= max(counts.values())]
        for prefix in {*likely, *([""] if layout == "timm" and not owner else [])}:
            bare = {name[len(prefix) :]: tensor for name, tensor in names.items() if name.startswith(prefix)}
            found[layout, prefix] = adapted(model, bare)
    return found


def adapted(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the shapes that `model` wants: position embeddings and patches resampled, input channels summed.

    Both are timm's own, and so is its family's converter of official names.
    """
    tensors = {name: _whole(name, tensor) for name, tensor in tensors.items()}
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        # what is not this family's makes it stumble, and then counts as it is
        with contextlib.suppress(KeyError, AttributeError, RuntimeError, ValueError):
            tensors = convert(tensors, model)
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    name = f"{first}.weight"
    if isinstance(first, str) and name in tensors and first in dict(model.named_modules()):
        wanted, given = model.get_submodule(first).weight.shape, tensors[name].shape
        if len(given) == 4 and given[1] == 3 and wanted[1] != 3 and wanted[2:] == given[2:]:
            from timm.models import adapt_input_conv

            tensors[name] = adapt_input_conv(wanted[1], tensors[name])
    return tensors


def _whole(name: str, tensor: Tensor) -> Tensor:
    """Class token and positions with their leading axes, [1, 1, F] and [1, T, F]."""
    missing = 3 - tensor.ndim if name in ("cls_token", "pos_embed") else 0
    return tensor[(None,) * missing] if missing > 0 else tensor
