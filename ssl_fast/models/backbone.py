"""Image backbones from timm, with the options that small images and exactness tests need; saving and loading them.

Video networks (`ssl_fast/models/video.py`) are built, saved and loaded here too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_fast.models.norm import replace_batch_norm
from ssl_fast.models.parts import add_adapters, add_parts, check_parts
from ssl_fast.models.parts.adapters import folded
from ssl_fast.models.resnet import resnet_arguments, set_stem
from ssl_fast.models.video import NAMES, build_video_network, over_frames
from ssl_fast.models.vit import VITS, vit_arguments
from ssl_fast.models.weights import WeightsReport, load_weights, read_weights

FORMAT = 1
# settings that have done their work when a backbone is saved
SPENT: dict[str, Any] = {"pretrained": False, "weights": "", "weights_from": "", "lora_rank": 0, "ia3": False}
# constructor argument of timm -> our name for it, for messages
ARGUMENTS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "drop_path_rate": "drop_path",
    "in_chans": "in_channels",
    "dynamic_img_size": "dynamic_size",
}
# options of some families alone: which of timm's files they are for, and how those are called
FAMILIES = {"resnet": (["resnet"], "timm's ResNets"), "vit": (VITS, "vision transformers")}
OPTIONS = {"cifar_stem": ("resnet",), "width": ("resnet", "vit"), "depth": ("resnet", "vit"), "heads": ("vit",)}


@dataclass
class BackboneConfig:
    """Which network, and how it differs from timm's.

    Attributes:
        name: any timm model, with or without a weights tag (`resnet18`, `vit_tiny_patch16_224.augreg_in21k`); its
            features of a clip are the mean over the frames. Or torchvision's `r3d_18`, `mc3_18`, `r2plus1d_18`.
        cifar_stem: ResNets: 3x3 stride-1 first convolution and no max pool, for images of about 32 px.
        in_channels: channels of the images; recipes set it from the data set.
        width: ResNets: channels of the stem and first stage (stages have 1, 2, 4, 8 times that); vision transformers:
            channels of a token. 0 keeps the model's.
        depth: ResNets: blocks per stage, "1,1,1,1"; vision transformers: blocks, "6". Empty keeps the model's.
        heads: vision transformers: attention heads, with `width`; 0: heads of 64 channels.
        norm: "batch", or "group" to replace every BatchNorm2d by GroupNorm, so that samples stay independent.
        pretrained: timm's published weights (downloaded, or from the hub's cache).
        weights: local file or run's folder, in any layout of `ssl_fast.models.layouts`; or torchvision's published
            ones, "torchvision:ResNet50_Weights.IMAGENET1K_V2".
        weights_from: part of the file's names to take, where it has several networks ("student", "encoder_k").
        min_matched: share of the network's tensors that `weights` must fill.
        image_size: side in pixels, for transformers that are built for one size; 0 keeps the model's.
        patch_size: side of a patch in pixels, for vision transformers; 0 keeps the model's.
        dynamic_size: vision transformers: take images of any size (local views beside global ones); position embeddings
            are resampled to it.
        drop_path: stochastic depth rate of the last block.
        attention: "cbam": channel and spatial attention in every residual block (ResNets, ConvNeXts).
        mixstyle: probability that a training batch has its styles mixed (ResNets, ConvNeXts).
        merge_tokens: patches that each block merges: "8", "0.1" of those left, or a list "8,8,4,..." (ViT, EVA-02).
        learn_tokens: learned tokens in place of the patches from the middle on (ViT, EVA-02); 0: off.
        lora_rank: rank of LoRA's updates, with which all other weights are frozen; 0: off.
        lora_alpha: LoRA's updates are scaled by alpha / rank; 0: the rank.
        lora_targets: pattern of the names of modules that LoRA goes on; empty: the blocks' layers.
        ia3: IA3's scales, with which all other weights are frozen.
    """

    name: str = "resnet18"
    cifar_stem: bool = False
    in_channels: int = 3
    width: int = 0
    depth: str = ""
    heads: int = 0
    norm: str = "batch"
    pretrained: bool = False
    weights: str = ""
    image_size: int = 0
    patch_size: int = 0
    dynamic_size: bool = False
    drop_path: float = 0.0
    attention: str = ""
    mixstyle: float = 0.0
    merge_tokens: str = ""
    learn_tokens: int = 0
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_targets: str = ""
    ia3: bool = False
    weights_from: str = ""
    min_matched: float = 0.9


class Backbone(nn.Module):
    """A network without classifier, that returns pooled features.

    Attributes:
        model: the module of timm or torchvision; its state dict has their bare names.
        num_features: F, width of the features.
        config: what it was built from.
        weights_report: what `config.weights` filled, None without it.
    """

    def __init__(self, model: nn.Module, config: BackboneConfig, weights_report: WeightsReport | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.weights_report = weights_report
        # models with a hidden layer between pooling and classifier return its width
        self.num_features = int(getattr(model, "head_hidden_size", None) or model.num_features)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,  # [N, C, H, W], or clips [N, C, T, H, W]
    ) -> Tensor:  # [N, F]
        """Features h [N, F] of normalised images or clips.

        Raises:
            ValueError: images for a video network.
        """
        if self.config.name in NAMES:
            if x.ndim != 5:
                raise ValueError(f"{self.config.name} takes clips [N, C, T, H, W], got shape {tuple(x.shape)}")
        elif x.ndim == 5:
            return over_frames(self.model, x)
        h: Tensor = self.model(x)
        return h


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("backbones need timm: pip install ssl_fast[recipes]") from error
    return timm


def _check(config: BackboneConfig) -> None:
    if config.norm not in ("batch", "group"):
        raise ValueError(f"backbone.norm must be batch or group, got {config.norm!r}")
    if config.in_channels < 1:
        raise ValueError(f"backbone.in_channels must be at least 1, got {config.in_channels}")
    if not 0.0 <= config.drop_path < 1.0:
        raise ValueError(f"backbone.drop_path must be in [0, 1), got {config.drop_path}")
    if not 0.0 < config.min_matched <= 1.0:
        raise ValueError(f"backbone.min_matched must be in (0, 1], got {config.min_matched}")
    check_parts(config)
    if config.name not in NAMES:
        _check_timm(config)


def _check_timm(config: BackboneConfig) -> None:
    timm = _timm()
    if not timm.is_model(config.name):
        known = [*timm.list_models(), *NAMES]
        near = difflib.get_close_matches(config.name.split(".")[0], known, n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"backbone.name: timm has no model {config.name!r}{hint}")
    if "." in config.name and config.name not in timm.list_pretrained(f"{config.name.split('.')[0]}.*"):
        tags = ", ".join(timm.list_pretrained(f"{config.name.split('.')[0]}.*")) or "none"
        raise ValueError(f"backbone.name: no published weights {config.name!r}; there are: {tags}")
    family = _family(config.name)
    chosen = [name for name in OPTIONS if getattr(config, name)]
    if foreign := [name for name in chosen if family not in OPTIONS[name]]:
        served = " and ".join(FAMILIES[served][1] for served in OPTIONS[foreign[0]])
        raise ValueError(f"backbone.{foreign[0]} is for {served}, and {config.name} is none of them")
    one_convolution = family != "resnet" or timm.get_pretrained_cfg(config.name).first_conv == "conv1"
    if (config.cifar_stem or config.width) and not one_convolution:
        raise ValueError(
            f"backbone.{chosen[0]} needs a ResNet whose stem is one convolution, such as resnet18, got {config.name}"
        )
    altered = [name for name in ("width", "depth", "heads") if getattr(config, name)] + ["norm"] * (
        config.norm == "group"
    )
    if config.pretrained and altered:
        raise ValueError(
            f"backbone.pretrained: the weights of {config.name} do not fit backbone.{altered[0]}; leave one out"
        )
    if config.pretrained and config.weights:
        raise ValueError("backbone.pretrained and backbone.weights both name weights; give one")


def _family(name: str) -> str:
    """Which of FAMILIES a model belongs to; empty for the others."""
    found = (family for family, (files, _) in FAMILIES.items() if _timm().models.is_model_in_modules(name, files))
    return next(found, "")


def _create(config: BackboneConfig) -> nn.Module:
    """timm's constructor, with its refusals in our words."""
    arguments: dict[str, Any] = {"in_chans": config.in_channels, "num_classes": 0}
    arguments |= {"img_size": config.image_size} if config.image_size else {}
    arguments |= {"patch_size": config.patch_size} if config.patch_size else {}
    arguments |= {"drop_path_rate": config.drop_path} if config.drop_path else {}
    arguments |= {"dynamic_img_size": True} if config.dynamic_size else {}
    if _family(config.name) == "vit":
        arguments |= vit_arguments(config.width, config.depth, config.heads)
    else:
        arguments |= resnet_arguments(config.width, config.depth)
    try:
        model: nn.Module = _timm().create_model(config.name, pretrained=config.pretrained, **arguments)
    except TypeError as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if refused is None:
            raise
        option = ARGUMENTS.get(refused[1], refused[1])
        raise ValueError(f"backbone.{option} is not an option of {config.name}") from error
    except (OSError, RuntimeError) as error:
        if not config.pretrained:
            raise
        raise FileNotFoundError(
            f"backbone.pretrained: the weights of {config.name} are neither in the cache nor within reach "
            f"({str(error).splitlines()[0]}); give a local file with backbone.weights"
        ) from error
    return model


def _image_network(config: BackboneConfig) -> nn.Module:
    model = _create(config)
    if _family(config.name) == "resnet" and (config.cifar_stem or config.width):
        set_stem(model, in_channels=config.in_channels, width=config.width, cifar=config.cifar_stem)
    if config.norm == "group" and not replace_batch_norm(model):
        raise ValueError(
            f"backbone.norm=group replaces batch normalisation, and {config.name} has none; leave norm=batch"
        )
    return model


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network that `config` names, randomly initialised (from torch's global generator) or with weights.

    Raises:
        ValueError: on an unknown name (the nearest are named), an option that the family lacks, or a weights file that
            does not fit.
        FileNotFoundError: when published weights cannot be had.
        ImportError: when timm is not installed, or peft for adapters.
    """
    _check(config)
    model = build_video_network(config) if config.name in NAMES else _image_network(config)
    plain = set(model.state_dict())
    add_parts(model, config)
    if config.norm == "group":
        replace_batch_norm(model)  # of the parts
    report = None
    if config.weights:
        report = load_weights(
            model, config.weights, required=plain, minimum=config.min_matched, owner=config.weights_from
        )
    add_adapters(model, config)
    return Backbone(model, config, report)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_state(backbone: Backbone) -> dict[str, Tensor]:
    """The tensors by timm's bare names, with adapters (LoRA, IA3) folded into the weights: the same outputs."""
    adapted = backbone.config.lora_rank or backbone.config.ia3
    return (folded(backbone.model) if adapted else backbone.model).state_dict()


def save_backbone(folder: str | Path, backbone: Backbone, preprocessing: dict[str, Any]) -> None:
    """Write `backbone.safetensors` (timm's bare names) and `backbone.json` into `folder`, each replaced atomically.

    What is saved is the `plain_state`, without adapters.
    The JSON file is written last, with the hash of the weights: a pair that an interruption left unequal does not load.

    Args:
        folder: made where it does not exist.
        backbone: the network; its tensors may live on any device.
        preprocessing: the evaluation view's fields, mean and std, channels: plain numbers, strings, lists.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, description = folder / "backbone.safetensors", folder / "backbone.json"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in plain_state(backbone).items()}
    partial = weights.with_suffix(".partial")
    partial.write_bytes(save(tensors))  # save_file makes files that only their owner may read
    content = {
        "format": FORMAT,
        "config": asdict(replace(backbone.config, **SPENT)),
        "num_features": backbone.num_features,
        "preprocessing": preprocessing,
        "sha256": _sha256(partial),
    }
    text = json.dumps(content, indent=2) + "\n"
    os.replace(partial, weights)
    partial = description.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, description)


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no backbone.json at {path}: give the folder of a finished pretrain or finetune stage")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a backbone description of format {FORMAT}")
    return content


def load_backbone(path: str | Path, adapters: BackboneConfig | None = None) -> tuple[Backbone, dict[str, Any]]:
    """Rebuild what `save_backbone` wrote, in eval mode on the CPU.

    Args:
        path: the folder, or its `backbone.json`.
        adapters: its `lora_*` and `ia3` are put on the network once the weights are loaded; None for none.

    Returns:
        (backbone, preprocessing).

    Raises:
        ValueError: when a file is missing, damaged (the hash differs) or of another format.
    """
    path = Path(path)
    description = path if path.suffix == ".json" else path / "backbone.json"
    content = _read_description(description)
    weights = description.with_name("backbone.safetensors")
    if not weights.is_file():
        raise ValueError(f"{description} has no backbone.safetensors beside it")
    if _sha256(weights) != content["sha256"]:
        raise ValueError(f"{weights} is damaged or of another run: its SHA-256 differs from the one in backbone.json")
    known = {field.name for field in fields(BackboneConfig)}
    config = BackboneConfig(**{name: value for name, value in content["config"].items() if name in known})
    backbone = build_backbone(config)
    backbone.model.load_state_dict(read_weights(weights))
    if adapters:
        chosen = {name: getattr(adapters, name) for name in ("lora_rank", "lora_alpha", "lora_targets", "ia3")}
        backbone.config = replace(backbone.config, **chosen)
        check_parts(backbone.config)
        add_adapters(backbone.model, backbone.config)
    return backbone.eval(), content["preprocessing"]
