"""Where the kernels run, and how work is cut up."""

import pytest
import torch

from ssl_fast.ops.triton import info_nce, nt_xent, tiles


def test_unavailable_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in str(nt_xent.unavailable())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert nt_xent.unavailable() is None
    assert "tensors are on cpu" in str(info_nce.unavailable(torch.ones(2, 3)))
    monkeypatch.setattr(tiles, "_has_triton", lambda: False)
    assert nt_xent.unavailable() == "the package triton is not installed"


def test_old_triton_on_sm100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_capability", lambda device: (10, 0))
    rows = torch.empty(4, 8, device="meta")
    on_gpu = type("OnGPU", (), {"device": torch.device("cuda", 0), "dtype": torch.float32, "ndim": 2})()
    for version, reason in (((3, 6), "float32 and float16 rows need Triton 3.9 on this GPU"), ((3, 9), None)):
        monkeypatch.setattr(tiles, "_triton_version", lambda version=version: version)
        assert tiles._wrong_device(on_gpu) == reason
    assert "tensors are on meta" in str(tiles._wrong_device(rows))
    monkeypatch.setattr(tiles, "_capability", lambda device: (7, 5))
    assert "below 8.0" in str(tiles._wrong_device(on_gpu))


def test_unavailable_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    good = torch.ones(2, 1024)
    assert nt_xent.unavailable(good, torch.tensor([1, 0])) is None
    assert info_nce.unavailable(good.half(), good, torch.ones(5, 1024, dtype=torch.bfloat16)) is None
    assert "float64 is not supported" in str(nt_xent.unavailable(good.double()))
    assert "1025 dimensions (at most 1024)" in str(nt_xent.unavailable(torch.ones(2, 1025)))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (33, 1000), (17408, 17408), (1 << 20, 1 << 20)])
def test_partition_covers_all(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "num_processors", lambda device: 132)
    tile = tiles.Tile(128, 64, 8, 3)
    row_tiles, parts, per_part = tiles.partition(rows, columns, tile, torch.device("cpu"), most=16)
    assert (row_tiles - 1) * 128 < rows <= row_tiles * 128
    assert (parts - 1) * per_part < columns <= parts * per_part and per_part % 64 == 0


def test_splits_fill_the_processors() -> None:
    assert tiles.splits(2, 1024, 132, 256) * 2 / 132 >= 0.9
    assert tiles.splits(132, 1024, 132, 16) == 1
    assert tiles.splits(136, 1024, 132, 16) == 7  # 952 programs in 8 waves of 132, not 136 in two
    assert tiles.splits(3, 2, 132, 16) == 2  # no more parts than column tiles


def test_fixed_offset_only_where_it_is_safe() -> None:
    assert tiles.bounded(40.0, True) and not tiles.bounded(40.1, True)
    assert not tiles.bounded(10.0, False)
    assert not tiles.bounded(torch.tensor(10.0), True)


@pytest.mark.parametrize("arch", ["sm80", "sm86", "sm90", "sm100", "interpreter"])
def test_table_has_every_tile(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "architecture", lambda device: arch)
    for kernel in ("triangle", "row_sum", "class_row_sum", "backward", "class_backward", "queue"):
        for dim in range(1, tiles.MAX_DIM + 1):
            for planes in (1, 2, 3):
                block_d, chunks = tiles.width(dim, planes)
                assert block_d >= 16 and (block_d * chunks) >= dim and block_d & (block_d - 1) == 0
                tile = tiles.tile(kernel, planes, dim, torch.device("cpu"))
                assert tiles.ROW_PADDING % tile.block_m == tiles.ROW_PADDING % tile.block_n == 0
