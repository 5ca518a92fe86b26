"""Views that are not alike, as settings of a method: BYOL's two, and DINO's crops."""

from dataclasses import dataclass, field, replace

from ssl_fast.data.view_presets import byol, dino
from ssl_fast.data.views import View


@dataclass
class AsymmetricViews:
    """The first view, and where the second differs from it; a base of a method's `Config`.

    Reference: Grill et al. 2020, arXiv:2006.07733, table 6.
    """

    view: View = field(default_factory=lambda: byol()[0])
    view2_blur: float = field(default_factory=lambda: byol()[1].blur)
    view2_solarize: float = field(default_factory=lambda: byol()[1].solarize)

    def two_views(self) -> tuple[View, View]:
        """Both; the second is called as the first, with 2 in place of 1."""
        name = self.view.name.removesuffix("1") + "2"
        return self.view, replace(self.view, name=name, blur=self.view2_blur, solarize=self.view2_solarize)


@dataclass
class MultiCrop(AsymmetricViews):
    """Two large views and some small ones.

    Reference: Caron et al. 2021, arXiv:2104.14294, section 3.2.
    """

    view: View = field(default_factory=lambda: dino()[0])
    num_local: int = 8
    local_size: int = 0  # pixels; 0: 3/7 of the global views'
    local_scale: tuple[float, float] = field(default_factory=lambda: dino()[-1].crop_scale)
    local_blur: float = field(default_factory=lambda: dino()[-1].blur)

    def crops(self) -> tuple[View, ...]:
        """The global views, then the local ones."""
        size = self.local_size or self.view.size * 3 // 7
        local = replace(self.view, name="local", size=size, crop_scale=self.local_scale, blur=self.local_blur)
        return (*self.two_views(), *(local,) * self.num_local)
