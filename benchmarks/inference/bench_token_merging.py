"""Token merging at three ratios: images a second, and how close the features stay to those without merging.

    python -m benchmarks.inference.bench_token_merging
    python -m benchmarks.inference.bench_token_merging --weights vit_small.safetensors --images photos --batch 64

Without `--weights` the network's weights are random, and the cosine then tells about random features alone. Without
`--images` (a folder of JPEGs) the images are the photographs that scikit-image and scikit-learn bring. Ratios are
interleaved and the median of the rounds is kept; the precision is bf16 on a GPU and fp32 on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

from benchmarks.record import write
from ssl_fast.data.datasets.photo_patches import PHOTOGRAPHS
from ssl_fast.models.backbone import Backbone, BackboneConfig, build_backbone

SIZE = 224


def pictures(folder: str, count: int) -> Tensor:
    """Normalised random crops of the images in turn [count, 3, 224, 224]."""
    places = {package: Path(find_spec(package).origin).parent for package in ("skimage", "sklearn")}  # type: ignore
    paths = sorted(Path(folder).rglob("*.jp*g")) if folder else [places[p] / name for p, name in PHOTOGRAPHS.values()]
    crop = transforms.Compose([transforms.RandomResizedCrop(SIZE, (0.2, 1.0)), transforms.ToTensor()])
    torch.manual_seed(0)
    pixels = [crop(Image.open(paths[i % len(paths)]).convert("RGB")) for i in range(count)]
    return (torch.stack(pixels) - 0.5) / 0.25


def networks(args: argparse.Namespace) -> dict[str, Backbone]:
    """The same weights without merging and with each ratio."""
    found: dict[str, Backbone] = {}
    for merge in ("", *args.ratios):
        torch.manual_seed(0)
        config = BackboneConfig(args.model, weights=args.weights, merge_tokens=merge)
        found[merge] = build_backbone(config).eval().to(args.device)
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--weights", default="", help="local file; by default weights are random")
    parser.add_argument("--images", default="", help="folder of images")
    parser.add_argument("--ratios", nargs="+", default=["4", "8", "13"], help="patches merged in each block")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    x, models = pictures(args.images, args.batch).to(args.device), networks(args)
    seconds: dict[str, list[float]] = {merge: [] for merge in models}
    features: dict[str, Tensor] = {}
    for _ in range(args.rounds + 1):  # the first warms up
        for merge, model in models.items():
            synchronize(args.device)
            begun = time.perf_counter()
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.device == "cuda"):
                features[merge] = model(x).float()
            synchronize(args.device)
            seconds[merge].append(time.perf_counter() - begun)
    rows = [row(args, merge, seconds, features) for merge in models]
    for line in rows:
        print(line)
    write("inference_token_merging", rows, ("timm",))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def row(
    args: argparse.Namespace, merge: str, seconds: dict[str, list[float]], features: dict[str, Tensor]
) -> dict[str, Any]:
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    cosine = F.cosine_similarity(features[merge], features[""])
    mean = features[""].mean(dim=0)  # what all images share says little about how close one of them stayed
    centred = F.cosine_similarity(features[merge] - mean, features[""] - mean)
    return {
        "model": args.model,
        "weights": args.weights or "random",
        "images": args.images or "photographs of scikit-image and scikit-learn",
        "merge_tokens": merge or "0",
        "batch": args.batch,
        "rounds": args.rounds,
        "images_per_second": round(args.batch / median[merge], 2),
        "speed_up": round(median[""] / median[merge], 3),
        "feature_cosine_mean": round(cosine.mean().item(), 5),
        "feature_cosine_min": round(cosine.min().item(), 5),
        "centred_cosine_mean": round(centred.mean().item(), 5),
    }


if __name__ == "__main__":
    main()
