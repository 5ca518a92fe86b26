"""The views of the papers, as lists of `View`: for `ssl_fast.augment`, and the defaults of the methods.

Sizes are those of ImageNet unless others are given; normalisation is ImageNet's, to be replaced by the data set's.

Example:
    >>> from ssl_fast.data.view_presets import dino
    >>> [view.size for view in dino(num_local=2)]
    [224, 224, 96, 96]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ssl_fast.data.views import View


def simclr(size: int = 224, strength: float = 1.0) -> tuple[View, ...]:
    """Two views alike; `strength` is the paper's s (0.5 for CIFAR-10, where there is no blur: appendix B.9).

    Reference: Chen et al. 2020, arXiv:2002.05709, appendix A (hue is a quarter of the other strengths, blur for half of
    the images).
    """
    s = 0.8 * strength
    view = View(size=size, brightness=s, contrast=s, saturation=s, hue=s / 4, jitter=0.8, grayscale=0.2, blur=0.5)
    return (view, view)


def moco_v2(size: int = 224) -> tuple[View, ...]:
    """Two views alike: the crops and jitter of v1, and SimCLR's blur.

    Reference: Chen et al. 2020, arXiv:2003.04297, section 3 ("aug+"; numbers from the authors' code).
    """
    view = View(
        size=size, crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8,
        grayscale=0.2, blur=0.5,
    )  # fmt: skip
    return (view, view)


def moco_v3(size: int = 224) -> tuple[View, ...]:
    """BYOL's two views, with bilinear crops.

    Reference: Chen et al. 2021, arXiv:2104.02057, section 4; the crops' scale is the default of the authors' code.
    """
    return tuple(replace(view, interpolation="bilinear") for view in byol(size))


def byol(size: int = 224) -> tuple[View, ...]:
    """The first view always blurred, the second seldom and sometimes solarised; bicubic crops.

    Reference: Grill et al. 2020, arXiv:2006.07733, appendix B and table 6.
    """
    view = View(
        "view1", size=size, interpolation="bicubic", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8,
        grayscale=0.2, blur=1.0,
    )  # fmt: skip
    return (view, replace(view, name="view2", blur=0.1, solarize=0.2))


def vicreg(size: int = 224) -> tuple[View, ...]:
    """BYOL's two views.

    Reference: Bardes et al. 2021, arXiv:2105.04906, appendix C.1.
    """
    return byol(size)


def swav(size: int = 224, local_size: int = 0, num_local: int = 6) -> tuple[View, ...]:
    """Two global and `num_local` local views, SimCLR's colours; `local_size` 0 is 3/7 of `size`.

    Reference: Caron et al. 2020, arXiv:2006.09882, section 3.3 (2 x 224 + 6 x 96) and the authors' code (scales).
    """
    glob = replace(simclr(size)[0], name="global", crop_scale=(0.14, 1.0))
    local = replace(glob, name="local", size=local_size or size * 3 // 7, crop_scale=(0.05, 0.14))
    return (glob, glob) + (local,) * num_local


def dino(size: int = 224, local_size: int = 0, num_local: int = 8, split: float = 0.4) -> tuple[View, ...]:
    """BYOL's two views from large crops, and `num_local` local ones; `split` is the crops' share that parts them.

    Reference: Caron et al. 2021, arXiv:2104.14294, section 3.2 and the authors' code (scales, bicubic crops).
    """
    first, second = (replace(view, crop_scale=(split, 1.0)) for view in byol(size))
    local_size = local_size or size * 3 // 7
    local = replace(first, name="local", size=local_size, crop_scale=(0.05, split), blur=0.5)
    return (replace(first, name="global1"), replace(second, name="global2")) + (local,) * num_local


def dinov2(size: int = 224, local_size: int = 0, num_local: int = 8) -> tuple[View, ...]:
    """DINO's views, parted at a share of 0.32.

    Reference: Oquab et al. 2023, arXiv:2304.07193, and the authors' default configuration.
    """
    return dino(size, local_size, num_local, split=0.32)


def mae(size: int = 224) -> tuple[View, ...]:
    """One view: crop and flip.

    Reference: He et al. 2021, arXiv:2111.06377, appendix A.1; the crops' scale is the default of the authors' code.
    """
    return (View(size=size, crop_scale=(0.2, 1.0), interpolation="bicubic"),)


def cvrl(size: int = 224, frames: int = 16, stride: int = 2) -> tuple[View, ...]:
    """Two clips of a video, near each other more often than far apart; BYOL's blur and solarisation.

    Reference: Qian et al. 2021, arXiv:2008.03800, sections 3.2 and 3.3; crops, strengths and probabilities are those of
    the authors' code.
    """
    view = View(
        "clip1", kind="clip", size=size, frames=frames, stride=stride, place="near", crop_scale=(0.3, 1.0),
        crop_ratio=(0.5, 2.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grayscale=0.2,
        blur=1.0,
    )  # fmt: skip
    return (view, replace(view, name="clip2", blur=0.1, solarize=0.2))


def supervised(size: int = 224) -> tuple[View, ...]:
    """One view: crop and flip.

    Reference: Szegedy et al. 2014, arXiv:1409.4842, section 6 (the crops' scale and ratio).
    """
    return (View(size=size),)


def autoaugment(size: int = 224) -> tuple[View, ...]:
    """Supervised training's view, and one of 25 learnt pairs of operations.

    Reference: Cubuk et al. 2018, arXiv:1805.09501, table 9.
    """
    return tuple(replace(view, policy="autoaugment") for view in supervised(size))


def randaugment(size: int = 224) -> tuple[View, ...]:
    """Supervised training's view, and two operations at one strength.

    Reference: Cubuk et al. 2019, arXiv:1909.13719, section 4.4 (N = 2, M = 9).
    """
    return tuple(replace(view, policy="randaugment") for view in supervised(size))


def trivialaugment(size: int = 224) -> tuple[View, ...]:
    """Supervised training's view, and one operation of any strength.

    Reference: Müller and Hutter 2021, arXiv:2103.10158, section 3 (the wide ranges of table 1).
    """
    return tuple(replace(view, policy="trivialaugment") for view in supervised(size))


PRESETS: dict[str, Callable[..., tuple[View, ...]]] = {
    preset.__name__: preset
    for preset in (
        simclr, moco_v2, moco_v3, byol, vicreg, swav, dino, dinov2, mae, cvrl, supervised, autoaugment, randaugment,
        trivialaugment
    )
}  # fmt: skip
