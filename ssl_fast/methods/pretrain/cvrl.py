"""CVRL: SimCLR on clips: pull two clips of a video together, push the clips of all other videos away.

    z = projector(backbone(clip)),   loss = NT-Xent(z1, z2; temperature)

The clips are more often close in time than far apart (`ssl_fast.data.clips.draw_places`), and all frames of a clip get
one crop, flip and colour. Backbones: torchvision's 3-D ResNets, or an image network averaged over the frames.

Reference: Qian et al. 2021, arXiv:2008.03800 (section 3.1 for the loss, 3.2 for the distance, 3.3 for the views).
"""

from dataclasses import dataclass, field

from ssl_fast.data.view_presets import cvrl
from ssl_fast.data.views import View
from ssl_fast.methods.asymmetric_views import AsymmetricViews
from ssl_fast.methods.pretrain.simclr import SimCLR, SimCLRConfig
from ssl_fast.models.backbone import Backbone
from ssl_fast.models.heads import mlp
from ssl_fast.optim.config import OptimizerConfig


@dataclass
class CVRLConfig(AsymmetricViews, SimCLRConfig):
    """Defaults: Kinetics, batch 1,024 (section 4.1); layers of the projector from the authors' code."""

    name: str = "cvrl"
    num_hidden: int = 3  # hidden layers of the projector
    view: View = field(default_factory=lambda: cvrl()[0])
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="sgd", lr=0.08, momentum=0.9, weight_decay=1e-6, warmup_epochs=5)
    )


class CVRL(SimCLR):
    """SimCLR's embedding and loss, with a deeper projector whose last layer has no norm."""

    Config = CVRLConfig
    config: CVRLConfig

    def __init__(self, config: CVRLConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        hidden = (config.hidden_dim,) * config.num_hidden
        self.projector = mlp((backbone.num_features, *hidden, config.dim), norm=config.norm)

    @staticmethod
    def views(config: SimCLRConfig) -> tuple[View, ...]:
        assert isinstance(config, CVRLConfig)
        if config.num_views != 2:
            raise ValueError(f"method.num_views: expected 2 clips of a video, got {config.num_views}")
        return config.two_views()
