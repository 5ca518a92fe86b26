"""recipes/embed.py on image files: a folder and a table, broken files among them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_fast.data.datasets import open_dataset
from ssl_fast.eval.features import extract_features
from ssl_fast.models.backbone import load_backbone
from ssl_fast.train.inputs import evaluation_view

NUM = 12


@pytest.fixture(scope="module", autouse=True)
def files(folder: Path, patches: Any) -> None:
    """images/<NN>.png, lossless copies of test patches; two files that are no images; a table of them all."""
    image = pytest.importorskip("PIL.Image")
    (folder / "images" / "deep").mkdir(parents=True)
    test = open_dataset(patches, "test")
    for i in range(NUM):
        image.fromarray(test.read(i)[..., 0]).save(folder / "images" / f"{i:02}.png")
    (folder / "images" / "05.png").rename(folder / "images" / "deep" / "05.png")
    whole = (folder / "images" / "00.png").read_bytes()
    (folder / "images" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images" / "page.jpg").write_text("<html>not found</html>")
    names = [f"{i:02}.png" for i in range(NUM) if i != 5] + ["deep/05.png", "page.jpg", "gone.png"]
    lines = [f"{name},{'even' if name[1] in '02468' else 'odd'}" for name in reversed(names)]
    (folder / "table.csv").write_text("\n".join(["file,kind", *lines]) + "\n")


def expected(folder: Path, patches: Any) -> dict[str, torch.Tensor]:
    backbone, preprocessing = load_backbone(folder / "runs/r/pretrain")
    found = extract_features(backbone, open_dataset(patches, "test"), evaluation_view(preprocessing))
    return {("deep/" if i == 5 else "") + f"{i:02}.png": found.h[i] for i in range(NUM)}


def test_a_folder_to_npz(folder: Path, patches: Any, run_recipe: Any) -> None:
    result = run_recipe("embed", "run=r", "data.root=images", folder=folder)
    assert (result["num_images"], result["quarantined"]) == (NUM, 2)
    with np.load(folder / "runs/r/embed/features.npz", allow_pickle=False) as file:
        rows = dict(zip(file["names"].tolist(), torch.from_numpy(file["h"]), strict=True))
        assert file["h"].dtype == np.float32
    assert rows.keys() == expected(folder, patches).keys()
    for name, h in expected(folder, patches).items():
        torch.testing.assert_close(rows[name], h, rtol=1e-4, atol=1e-5)
    refused = [json.loads(line) for line in (folder / "runs/r/embed/quarantine.jsonl").read_text().splitlines()]
    assert {Path(entry["path"]).name for entry in refused} == {"broken.png", "page.jpg"}
    assert all(entry["reason"] for entry in refused)


def test_a_table_to_parquet(folder: Path, patches: Any, run_recipe: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    settings = ("data=image_csv", "data.path=table.csv", "data.root=images", "data.column=file")
    settings += ("data.label_column=kind", "format=parquet", "stage=embed_table")
    result = run_recipe("embed", "run=r", *settings, folder=folder)
    assert (result["num_images"], result["quarantined"]) == (NUM, 2)
    table = parquet.read_table(folder / "runs/r/embed_table/features.parquet").to_pydict()
    assert table["name"] == ["deep/05.png"] + [f"{i:02}.png" for i in reversed(range(NUM)) if i != 5]
    for name, h, label in zip(table["name"], table["h"], table["label"], strict=True):
        torch.testing.assert_close(torch.tensor(h), expected(folder, patches)[name], rtol=1e-4, atol=1e-5)
        assert label == ("odd" if name == "deep/05.png" else "even" if int(name[1]) % 2 == 0 else "odd")


def test_several_labels_and_unknown_ones_to_parquet(folder: Path, run_recipe: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (folder / "several.csv").write_text("file,kinds,kind\n00.png,cat|dog,a\n01.png,,\n02.png,dog,b\n")
    settings = ("data=image_csv", "data.path=several.csv", "data.root=images", "data.column=file", "format=parquet")
    several = ("data.label_column=kinds", 'data.label_separator="|"', "stage=embed_several")
    for given, expected in (
        (several, [["cat", "dog"], [], ["dog"]]),
        (("data.label_column=kind", "stage=embed_unknown"), ["a", None, "b"]),
    ):
        run_recipe("embed", "run=r", *settings, *given, folder=folder)
        file = folder / "runs/r" / given[-1].removeprefix("stage=") / "features.parquet"
        assert parquet.read_table(file).to_pydict()["label"] == expected


def test_an_unknown_format_ends_in_a_sentence(folder: Path, run_recipe: Any) -> None:
    said = run_recipe("embed", "run=r", "data.root=images", "format=csv", folder=folder, code=2)
    assert said == "error: format: expected npz or parquet, got 'csv'"
