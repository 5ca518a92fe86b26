"""The picture of neighbours: its size, its frames, its shares."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_fast.eval.features import Features
from ssl_fast.eval.neighbours import save_neighbours

GREEN, RED, WHITE = (46, 160, 67), (207, 34, 46), (255, 255, 255)


def test_frames_tell_right_from_wrong(tmp_path: Path, pictures: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    train, test = pictures(num=6), pictures(num=2, seed=1)
    train.labels, test.labels = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1])
    direction = torch.eye(2)[torch.as_tensor(train.labels)]
    query = torch.eye(2)[torch.as_tensor(test.labels)]
    kinds = {"right": (direction, query), "wrong": (direction, query.flip(1))}
    shares = save_neighbours(tmp_path / "n.png", train, test, kinds, [0, 1], k=2, size=10)
    assert shares == {"right": 1.0, "wrong": 0.0}
    pixels = np.asarray(image.open(tmp_path / "n.png"))
    step, block = 10 + 6 + 2, 2 * (10 + 6 + 2) + 18
    assert pixels.shape == (18 + 2 * step, step + 18 + 2 * block, 3)
    for row in range(2):
        for column in range(2):
            y, x = 18 + row * step, step + 18 + column * step
            assert tuple(pixels[y, x]) == GREEN
            assert tuple(pixels[y, x + block]) == RED
    # The second query's first neighbour is the first training image of class 1, in the frame of 3 pixels.
    inside = pixels[18 + step + 3 : 18 + step + 13, step + 18 + 3 : step + 18 + 13]
    expected = np.asarray(image.fromarray(train.read(3)).resize((10, 10), image.Resampling.BILINEAR))
    assert np.abs(inside.astype(int) - expected).mean() < 3


def test_without_labels_there_are_no_frames(tmp_path: Path, pictures: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    train, test = pictures(num=6), pictures(num=2, seed=1)
    train.labels = None
    assert save_neighbours(tmp_path / "n.png", train, test, {"h": (torch.eye(6), torch.eye(6)[:2])}, [1], k=2) == {}
    pixels = np.asarray(image.open(tmp_path / "n.png")).reshape(-1, 3)
    assert not any((pixels == colour).all(1).any() for colour in (GREEN, RED))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_any_number_of_channels_and_fewer_than_asked(tmp_path: Path, pictures: Any, channels: int) -> None:
    image = pytest.importorskip("PIL.Image")
    data = pictures(num=3)
    data.read = lambda i: np.full((8, 8, channels), 50 * i, dtype=np.uint8)
    save_neighbours(tmp_path / "n.png", data, data, {"h": (torch.eye(3), torch.eye(3))}, [1], k=6, size=8)
    assert image.open(tmp_path / "n.png").width == 16 + 18 + 3 * 16 + 18


def test_a_query_of_unknown_class_is_never_right(tmp_path: Path, pictures: Any) -> None:
    data = pictures(num=3)
    data.labels = np.array([-1, -1, 0])
    rows = (torch.eye(3), torch.eye(3))
    assert save_neighbours(tmp_path / "n.png", data, data, {"h": rows}, [0, 2], k=1) == {"h": 0.5}


def test_grey_images_of_any_size(tmp_path: Path, pictures: Any) -> None:
    grey = pictures(num=4)
    grey.read = lambda i: np.full((5 + i, 20, 1), 200, dtype=np.uint8)
    save_neighbours(tmp_path / "n.png", grey, grey, {"h": (torch.eye(4), torch.eye(4))}, [0, 3], k=3)
    assert (tmp_path / "n.png").stat().st_size > 0


def test_errors_name_the_argument(tmp_path: Path, pictures: Any) -> None:
    train = pictures(num=4)
    with pytest.raises(ValueError, match=r"kinds\['h'\]: expected a row for each sample, 4, got 3"):
        save_neighbours(tmp_path / "n.png", train, train, {"h": (torch.eye(3), torch.eye(4))}, [0])
    with pytest.raises(ValueError, match=r"queries: expected sample numbers from 0 to 3"):
        save_neighbours(tmp_path / "n.png", train, train, {"h": (torch.eye(4), torch.eye(4))}, [4])
    with pytest.raises(ValueError, match=r"queries, kinds: expected at least one of each"):
        save_neighbours(tmp_path / "n.png", train, train, {}, [0])


def test_samples_without_a_row_are_neither_shown_nor_found(tmp_path: Path, pictures: Any) -> None:
    train, test = pictures(num=5), pictures(num=3, seed=1)
    train.labels, test.labels = np.array([0, 1, 1, 0, 0]), np.array([0, 1, 0])
    h = torch.eye(2)
    found = Features(h[[0, 1, 0]], None, None, torch.tensor([0, 2, 4])), Features(h[[1]], None, None, torch.tensor([1]))
    shares = save_neighbours(tmp_path / "n.png", train, test, {"h": found}, [0, 1, 2], k=1, size=10)
    assert shares == {"h": 1.0}  # query 1, of class 1, finds sample 2, of class 1
    with pytest.raises(ValueError, match=r"queries: none of \[0, 2\] could be decoded"):
        save_neighbours(tmp_path / "n.png", train, test, {"h": found}, [0, 2], k=1)
