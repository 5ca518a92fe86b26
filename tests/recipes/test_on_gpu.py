"""The recipes on a GPU: training, its monitor and features before and after it, and every later stage."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu
DATA = ("data=photo_patches", "data.num_train=320", "data.num_val=160", "data.num_test=160")
SMALL = ("backbone.cifar_stem=true", "backbone.width=8", 'backbone.depth="1,1,1,1"', "train.batch_size=64")


@pytest.mark.parametrize("method", ["simclr", "moco", "dino", "swav", "nnclr"])
def test_from_images_to_scores(tmp_path: Path, run_recipe: Any, method: str) -> None:
    command = ("pretrain", f"method={method}", *DATA, *SMALL, "train.epochs=2", "train.device=cuda", "run=r")
    result = run_recipe(*command, folder=tmp_path)
    assert result["steps"] == 10 and 0 < result["knn_top1"] <= 1 and 0 < result["knn_top1_random_init"] <= 1
    assert 0 < run_recipe("probe", "run=r", "device=cuda", folder=tmp_path)["linear_top1"] <= 1
    tuned = ("train.epochs=1", "train.batch_size=64", "train.device=cuda")
    assert 0 < run_recipe("finetune", "run=r", *tuned, folder=tmp_path)["top1"] <= 1
    assert run_recipe("embed", "run=r", *DATA, "split=test", "device=cuda", folder=tmp_path)["num_images"] == 160
