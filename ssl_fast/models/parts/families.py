"""Which families of networks there are, and the sentence for a part that does not go into one."""

from __future__ import annotations

from torch import nn

# family -> its class in timm, and models of it
FAMILIES = {
    "resnet": ("timm.models.resnet", "ResNet", "resnet18, resnet50"),
    "convnext": ("timm.models.convnext", "ConvNeXt", "convnext_tiny, convnextv2_atto"),
    "swin": ("timm.models.swin_transformer", "SwinTransformer", "swin_tiny_patch4_window7_224"),
    "swinv2": ("timm.models.swin_transformer_v2", "SwinTransformerV2", "swinv2_tiny_window8_256"),
    "vit": ("timm.models.vision_transformer", "VisionTransformer", "vit_small_patch16_224, vit_small_patch14_dinov2"),
    "eva": ("timm.models.eva", "Eva", "eva02_tiny_patch14_224"),
}


def family_of(model: nn.Module) -> str:
    """The key of FAMILIES that `model` belongs to; "" for another network."""
    classes = {(cls.__module__, cls.__name__) for cls in type(model).__mro__}
    return next((family for family, (module, name, _) in FAMILIES.items() if (module, name) in classes), "")


def require(
    model: nn.Module,
    part: str,
    families: tuple[str, ...],
    name: str,
) -> str:
    """The family of `model`, one of `families`.

    Args:
        part: the setting that asks for it, for the message.
        name: of the model, for the message.

    Raises:
        ValueError: another family; names models that work.
    """
    family = family_of(model)
    if family not in families:
        models = "; ".join(FAMILIES[known][2] for known in families)
        raise ValueError(f"backbone.{part} does not go into {name}; it goes into {models}")
    return family
