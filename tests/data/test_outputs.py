"""Memory of views that is used again: what anyone holds is never written."""

import pickle
import random
import threading

import numpy as np
import pytest
import torch

from ssl_fast import augment
from ssl_fast.data.dataset import ArrayDataset
from ssl_fast.data.loader import Loader, LoaderConfig
from ssl_fast.data.outputs import Spares
from ssl_fast.data.view_presets import simclr, swav
from ssl_fast.data.views import View

SHAPE = (5, 3, 4, 4)


def tensor(spares, shape=SHAPE, dtype=torch.float32, layout=torch.channels_last):
    return spares.empty(shape, dtype, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [SHAPE, (0, 3, 4, 4), (5, 1, 4, 4), (5, 3, 1, 1), (1, 1, 1, 1)])
def test_tensors_are_like_torchs_own(shape, layout, dtype):
    ours, theirs = tensor(Spares(2), shape, dtype, layout), torch.empty(shape, dtype=dtype, memory_format=layout)
    assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
    assert ours.data_ptr() % 64 == 0 or not ours.numel()
    assert not ours._is_view() and ours.is_contiguous(memory_format=layout)
    assert pickle.loads(pickle.dumps(ours)).shape == ours.shape


def test_memory_comes_back_when_it_was_let_go_of():
    spares = Spares(2)
    first = tensor(spares)
    where = first.data_ptr()
    assert tensor(spares).data_ptr() != where
    del first
    assert {tensor(spares).data_ptr() for _ in range(3)} == {where}


@pytest.mark.parametrize(
    "hold",
    [
        lambda x: x,
        lambda x: x[1:2],
        lambda x: x.detach(),
        lambda x: x.permute(0, 2, 3, 1).reshape(-1),
        lambda x: x.untyped_storage(),
        lambda x: x.numpy(),
        lambda x: np.asarray(x)[2:],
        lambda x: memoryview(x.numpy()),
        lambda x: torch.from_dlpack(x),
        lambda x: np.from_dlpack(x),
        lambda x: torch.utils.dlpack.to_dlpack(x),
        lambda x: {"nested": [(x,)]},
        lambda x: torch.nn.Parameter(x),
        lambda x: (x * torch.ones(4, requires_grad=True)).sum(),  # the graph has saved x
    ],
)
def test_whatever_shares_the_memory_keeps_it(hold):
    spares = Spares(2)
    x = tensor(spares)
    where = x.data_ptr()
    held = hold(x)
    del x
    assert tensor(spares).data_ptr() != where
    del held
    assert where in {y.data_ptr() for y in [tensor(spares), tensor(spares)]}


def test_no_more_is_kept_in_reserve_than_was_asked_for():
    spares = Spares(3)
    held = [tensor(spares) for _ in range(10)]
    held.clear()
    assert len(spares._blocks) == 3
    tensor(spares, (7, 3, 4, 4))  # another size takes none of them, and pushes one out
    assert len(spares._blocks) == 3
    assert pickle.loads(pickle.dumps(spares))._blocks.maxlen == 3
    assert not pickle.loads(pickle.dumps(spares))._blocks


def test_moving_a_tensor_to_shared_memory_gives_its_own_back():
    spares = Spares(2)
    x = tensor(spares).fill_(3)
    where = x.data_ptr()
    x.share_memory_()
    y = tensor(spares).fill_(4)
    assert y.data_ptr() == where and bool((x == 3).all())


def test_threads_never_share_a_block():
    """Each writes its own number into what it holds, lets some go, and looks whether the rest is as it was."""
    spares, wrong = Spares(6), []

    def work(number):
        choose, held = random.Random(number), []
        for _ in range(2000):
            held.append(tensor(spares, (choose.choice((1, 2)), 3, 4, 4)).fill_(number))
            if len(held) > choose.randrange(5):
                wrong.extend(x for x in held if not bool((x == number).all()))
                held.pop(choose.randrange(len(held)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def photos(num=60):
    return ArrayDataset(np.random.default_rng(0).integers(0, 256, (num, 20, 20, 3), dtype=np.uint8), None, [])


@pytest.mark.parametrize(("workers", "start_method"), [(0, "thread"), (2, "thread"), (2, "fork")])
def test_batches_that_are_kept_stay_as_they_were(workers, start_method):
    views = (View("a", size=16, brightness=0.4, jitter=0.8), View("b", size=24, blur=0.5))
    config = LoaderConfig("fused", workers, 2, start_method)
    loader = Loader(photos(), views, config, batch_size=8, seed=0, shuffle=True, drop_last=False)
    fresh = [[view.clone() for view in batch.views] for epoch in range(3) for batch in loader.epoch(epoch)]
    kept = [batch.views for epoch in range(3) for batch in loader.epoch(epoch)]
    some = [batch.views[step % 2][1:3] for epoch in range(3) for step, batch in enumerate(loader.epoch(epoch))]
    for step, (wanted, views, part) in enumerate(zip(fresh, kept, some, strict=True)):
        assert all(torch.equal(x, y) for x, y in zip(wanted, views, strict=True))
        assert torch.equal(wanted[step % 8 % 2][1:3], part)
    loader.close()


def test_a_loop_that_keeps_nothing_writes_the_same_memory_again():
    config = LoaderConfig("fused", workers=0)
    loader = Loader(photos(), (View(size=16),), config, batch_size=10, seed=0, shuffle=True, drop_last=True)
    places = [batch.views[0].data_ptr() for epoch in range(5) for batch in loader.epoch(epoch)]
    assert len(places) == 30 and len(set(places)) <= 3


def test_augment_writes_into_out():
    images, views, index = np.asarray(photos(6).arrays), swav(size=28, num_local=2), range(6)
    first = augment(images, views, key=(0, 0, index))
    second = augment(images, views, key=(0, 1, index))
    into = augment(images, views, key=(0, 1, index), out=first)
    for x, y, z in zip(first, into, second, strict=True):
        assert x is y and torch.equal(y, z)


def test_the_torchvision_engine_writes_into_out(monkeypatch):
    images, views = np.asarray(photos(6).arrays), simclr(size=16)
    monkeypatch.setattr("ssl_fast.data.augment.unavailable", lambda: "not built")
    expected = augment(images, views, key=(0, 1, range(6)))
    out = [torch.zeros_like(view) for view in expected]
    found = augment(images, views, key=(0, 1, range(6)), out=out)
    assert all(torch.equal(x, y) and x is z for x, y, z in zip(found, expected, out, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out[:1], "expected 2 tensors for as many views, got 1"),
        (lambda out: (out[0], out[1][:2]), r"expected torch.float32 \[6, 3, 16, 16\] on cpu"),
        (lambda out: (out[0].double(), out[1]), "got torch.float64"),
        (lambda out: (out[0].contiguous(), out[1]), "channels_last in memory"),
    ],
)
@pytest.mark.parametrize("built", [True, False])
def test_an_out_that_does_not_fit_is_refused(change, message, built, monkeypatch):
    if not built:
        monkeypatch.setattr("ssl_fast.data.augment.unavailable", lambda: "not built")
    images, views = np.asarray(photos(6).arrays), simclr(size=16)
    out = augment(images, views, key=(0, 0, range(6)))
    with pytest.raises(ValueError, match=f"out: .*{message}"):
        augment(images, views, key=(0, 0, range(6)), out=change(out))
