"""recipes/views.py: sheets of a method's views, the same for each engine."""

from pathlib import Path
from typing import Any

import numpy as np

from ssl_fast.data.view_presets import PRESETS

FEW = ("data.num_train=32", "data.num_val=16", "data.num_test=16", "data.color=true", "num_images=3")


def test_sheets_of_two_engines(tmp_path: Path, run_recipe: Any) -> None:
    from PIL import Image

    result = run_recipe("views", "method=dino", "engines=[fused,torchvision]", "run=r", *FEW, folder=tmp_path)
    assert result["views"] == ["global1", "global2", *["local"] * 8]
    assert result["differences"]["torchvision"]["largest"] < 2
    fused, torchvision = (
        np.array(Image.open(tmp_path / f"runs/r/views/{name}.png")) for name in ("fused", "torchvision")
    )
    assert fused.shape == (14 + 3 * (32 + 6), 3 * 32 + 8 * 13 + 11 * 6, 3)
    assert np.abs(fused.astype(int) - torchvision).max() <= 2
    first_view = fused[14 : 14 + 32, 32 + 6 : 64 + 6]
    assert first_view.std() > 5, "a picture, not an empty cell"


def test_an_unknown_method_ends_in_a_sentence(tmp_path: Path, run_recipe: Any) -> None:
    said = run_recipe("views", "method=byyol", folder=tmp_path, code=2)
    assert said == f"error: method: no 'byyol'; did you mean 'byol'? (known: {', '.join(sorted(PRESETS))})"


def test_an_engine_that_cannot_run_is_named(tmp_path: Path, run_recipe: Any) -> None:
    said = run_recipe("views", "engines=[dali]", *FEW, folder=tmp_path, code=2)
    assert said == "error: data.engine: dali cannot be used: the data set is not a folder of image files"
    said = run_recipe("views", "engines=[dalli]", *FEW, folder=tmp_path, code=2)
    assert said == "error: data.engine: expected 'auto', 'fused', 'torchvision' or 'dali', got 'dalli'"
