"""lightly's losses: value and gradients of the installed package, over shapes, temperatures, edge cases and steps."""

import copy

import pytest
import torch
from torch import Tensor

from ssl_fast.dropin import lightly as ours
from tests.dropin.same import close, rows, same

theirs = pytest.importorskip("lightly.loss")
DTYPES = [torch.float64, torch.float32]
SHAPES = [(2, 3), (5, 4), (16, 8), (33, 7)]


def pair(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    return rows(*shape, seed=seed, dtype=dtype), rows(*shape, seed=seed + 100, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0, -0.5])
@pytest.mark.parametrize("shape", [(1, 3), *SHAPES])
def test_nt_xent(shape: tuple[int, int], temperature: float, dtype: torch.dtype) -> None:
    same(ours.NTXentLoss(temperature), theirs.NTXentLoss(temperature), pair(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 4, 8, 10, 16])  # below, at and above the batch; a multiple and none
def test_nt_xent_with_a_memory_bank_over_steps(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mine = ours.NTXentLoss(0.1, (size, 6)).to(dtype)
    torch.manual_seed(0)
    other = theirs.NTXentLoss(0.1, (size, 6)).to(dtype)
    assert torch.equal(mine.memory_bank.bank, other.memory_bank.bank), "the same start from the same seed"
    assert mine.state_dict().keys() == other.state_dict().keys()
    for step in range(5):
        same(mine, other, pair((4, 6), dtype, step))
        close(mine.memory_bank.bank, other.memory_bank.bank, dtype, "bank")
        assert torch.equal(mine.memory_bank.bank_ptr, other.memory_bank.bank_ptr)


def test_a_memory_bank_takes_batches_of_changing_size_and_rests_without_a_gradient() -> None:
    torch.manual_seed(0)
    mine = ours.NTXentLoss(0.2, (7, 5)).double()
    other = theirs.NTXentLoss(0.2, (7, 5)).double()
    other.memory_bank.bank.copy_(mine.memory_bank.bank)
    for step, count in enumerate([1, 5, 9, 2, 7, 3]):
        same(mine, other, pair((count, 5), torch.float64, step))
        before = mine.memory_bank.bank.clone()
        one, two = (t.detach() for t in pair((count, 5), torch.float64, step + 50))
        close(mine(one, two), other(one, two), torch.float64, "value without a gradient")
        assert torch.equal(mine.memory_bank.bank, before)
        close(mine.memory_bank.bank, other.memory_bank.bank, torch.float64, "bank")


def test_a_memory_bank_with_a_negative_temperature() -> None:
    torch.manual_seed(0)
    mine = ours.NTXentLoss(-0.3, (7, 5)).double()
    torch.manual_seed(0)
    other = theirs.NTXentLoss(-0.3, (7, 5)).double()
    for step in range(2):
        same(mine, other, pair((4, 5), torch.float64, step))


def test_memory_bank_module_forward() -> None:
    torch.manual_seed(0)
    mine = ours.MemoryBankModule((4, 3), feature_dim_first=False)
    output, bank = mine(torch.ones(2, 3))
    assert torch.equal(output, torch.ones(2, 3)) and bank is not None and bank.shape == (4, 3)
    assert ours.MemoryBankModule(0)(output)[1] is None and ours.MemoryBankModule((0, 3))(output)[1] is None


@pytest.mark.parametrize("size", [-1, (2, 3, 4), (-2, 3), (2, -1)])
def test_memory_bank_sizes_that_both_refuse(size: int | tuple[int, ...]) -> None:
    for package in (ours, theirs):
        with pytest.raises(ValueError, match="memory bank size"):
            package.NTXentLoss(memory_bank_size=size)


def test_a_memory_bank_given_by_its_number_of_rows_has_the_dimension_of_the_first_batch() -> None:
    torch.manual_seed(0)
    mine = ours.NTXentLoss(0.1, 8)
    one, other = pair((3, 5), torch.float32)
    torch.manual_seed(1)
    by_number = mine(one, other)
    torch.manual_seed(1)
    by_shape = theirs.NTXentLoss(0.1, (8, 5))(one, other)
    close(by_number.detach(), by_shape.detach(), torch.float32)
    assert mine.memory_bank.bank.shape == (8, 5)


@pytest.mark.parametrize("temperature", [0.0, 1e-9, -1e-9])
def test_temperatures_that_both_refuse(temperature: float) -> None:
    for package in (ours, theirs):
        with pytest.raises(ValueError, match="Illegal temperature"):
            package.NTXentLoss(temperature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_dcl(shape: tuple[int, int], temperature: float, dtype: torch.dtype) -> None:
    same(ours.DCLLoss(temperature), theirs.DCLLoss(temperature), pair(shape, dtype))


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sigma", [0.2, 0.5, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_dclw(shape: tuple[int, int], sigma: float, dtype: torch.dtype) -> None:
    same(ours.DCLWLoss(0.1, sigma), theirs.DCLWLoss(0.1, sigma), pair(shape, dtype))


def test_dcl_with_a_weight_function_that_has_a_gradient_and_a_direction() -> None:
    def weight_fn(one: Tensor, other: Tensor) -> Tensor:
        return ((one - other) ** 2).sum(1) + one[:, 0]

    options = {"temperature": 0.2, "weight_fn": weight_fn}
    same(ours.DCLLoss(**options), theirs.DCLLoss(**options), pair((6, 4), torch.float64))


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_dcl_of_one_sample_is_zero_here_and_minus_infinity_there() -> None:
    one, other = pair((1, 4), torch.float64)
    for name in ("DCLLoss", "DCLWLoss"):
        assert getattr(ours, name)()(one, other).item() == pytest.approx(0.0, abs=1e-12)
        assert getattr(theirs, name)()(one, other).item() == -torch.inf


def views(count: int, num_rows: int, dim: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    return [rows(num_rows, dim, seed=seed + v, dtype=dtype) for v in range(count)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("teacher", "student"), [(2, 2), (2, 8), (1, 2), (2, 1), (3, 2), (1, 5)])
def test_dino_over_steps(teacher: int, student: int, dtype: torch.dtype) -> None:
    mine = ours.DINOLoss(6, warmup_teacher_temp=0.02, teacher_temp=0.07, warmup_teacher_temp_epochs=3).to(dtype)
    other = theirs.DINOLoss(6, warmup_teacher_temp=0.02, teacher_temp=0.07, warmup_teacher_temp_epochs=3).to(dtype)
    calls = [{}, {"epoch": 0}, {"epoch": 1}, {"epoch": 2}, {"epoch": 7}, {"teacher_temp": 0.05}]
    for step, call in enumerate(calls):
        outputs = [t.detach() for t in views(teacher, 4, 6, dtype, 10 * step)]
        same(
            lambda *s, outputs=outputs, call=call: mine(outputs, list(s), **call),
            lambda *s, outputs=outputs, call=call: other(outputs, list(s), **call),
            views(student, 4, 6, dtype, 10 * step + 5),
        )
        close(mine.center, other.center, dtype, "center")
    assert mine.state_dict().keys() == other.state_dict().keys()
    mine.load_state_dict(other.state_dict())


def test_dino_settings_that_both_refuse() -> None:
    one = views(1, 4, 6, torch.float32, 0)
    for package in (ours, theirs):
        with pytest.raises(ValueError, match="Unknown mode"):
            package.DINOLoss(6, center_mode="median")
        with pytest.raises(ValueError, match="view"):
            package.DINOLoss(6)(one, one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3), (5, 4), (4, 9), (33, 8), (6, 3, 4), (6, 2, 2, 4)])
@pytest.mark.parametrize("options", [{}, {"lambda_param": 1.0, "mu_param": 3.0, "nu_param": 0.5, "eps": 1e-3}])
def test_vicreg(shape: tuple[int, ...], options: dict[str, float], dtype: torch.dtype) -> None:
    same(ours.VICRegLoss(**options), theirs.VICRegLoss(**options), pair(shape, dtype))


@pytest.mark.parametrize("terms", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_each_term_of_vicreg_alone(terms: tuple[float, float, float]) -> None:
    same(ours.VICRegLoss(*terms), theirs.VICRegLoss(*terms), pair((8, 5), torch.float64))


def test_vicreg_refuses_what_lightly_asserts() -> None:
    for shapes in (((1, 4), (1, 4)), ((4, 4), (5, 4))):
        tensors = [torch.randn(shape) for shape in shapes]
        with pytest.raises(ValueError, match="z_a and z_b"):
            ours.VICRegLoss()(*tensors)
        with pytest.raises(AssertionError):
            theirs.VICRegLoss()(*tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lambd", [5e-3, 1.0])
@pytest.mark.parametrize("shape", [(2, 3), (5, 4), (4, 9), (33, 8)])
def test_barlow_twins(shape: tuple[int, int], lambd: float, dtype: torch.dtype) -> None:
    if shape[0] == 2 and dtype == torch.float32:
        pytest.skip("the columns of two samples are +1 and -1: the gradient is what is left of a cancellation")
    same(ours.BarlowTwinsLoss(lambd), theirs.BarlowTwinsLoss(lambd), pair(shape, dtype))


def test_barlow_twins_of_one_sample_is_refused_by_both() -> None:
    for package in (ours, theirs):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            package.BarlowTwinsLoss()(torch.randn(1, 4), torch.randn(1, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queue", [None, 1, 20])
@pytest.mark.parametrize(("high", "low"), [(2, 0), (2, 4), (1, 3), (3, 1)])
def test_swav(high: int, low: int, queue: int | None, dtype: torch.dtype) -> None:
    options = {"temperature": 0.2, "sinkhorn_iterations": 4, "sinkhorn_epsilon": 0.1}
    queues = None if queue is None else [t.detach() for t in views(high, queue, 5, dtype, 70)]
    same(
        lambda *t: ours.SwaVLoss(**options)(t[:high], t[high:], queues),
        lambda *t: theirs.SwaVLoss(**options)(list(t[:high]), list(t[high:]), queues),
        views(high + low, 6, 5, dtype, 3),
    )


def test_swav_is_finite_where_lightly_overflows() -> None:
    outputs = [30 * t for t in views(2, 4, 5, torch.float32, 0)]
    assert ours.SwaVLoss()(outputs, []).isfinite().all() and theirs.SwaVLoss()(outputs, []).isnan().all()


def test_swav_settings_that_are_not_served() -> None:
    with pytest.raises(ValueError, match="iterations"):
        ours.SwaVLoss(sinkhorn_iterations=0)
    with pytest.raises(ValueError, match="no pair of views"):
        ours.SwaVLoss()([torch.randn(3, 4)], [])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("shape", "dim"), [((5, 4), 1), ((5, 4), 0), ((5, 4), -1), ((3, 5, 4), 1), ((3, 5, 4), 2)])
def test_negative_cosine(shape: tuple[int, ...], dim: int, needs: tuple[bool, bool], dtype: torch.dtype) -> None:
    inputs = [t.detach().requires_grad_(need) for t, need in zip(pair(shape, dtype), needs, strict=True)]
    same(ours.NegativeCosineSimilarity(dim), theirs.NegativeCosineSimilarity(dim), inputs)


def test_negative_cosine_broadcasts_as_there() -> None:
    inputs = [rows(5, 1, 4), rows(3, 4, seed=1)]
    same(ours.NegativeCosineSimilarity(2), theirs.NegativeCosineSimilarity(2), inputs)


def test_negative_cosine_of_a_row_of_zeros_differs_by_a_half_at_most() -> None:
    one, other = torch.zeros(1, 4), torch.ones(1, 4)
    difference = ours.NegativeCosineSimilarity()(one, other) - theirs.NegativeCosineSimilarity()(one, other)
    assert difference.abs().item() <= 0.5


def test_modules_can_be_copied_and_printed() -> None:
    for name in ours.__all__:
        if name != "MemoryBankModule":
            assert name in repr(copy.deepcopy(getattr(ours, name)()))


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss", "VICRegLoss", "BarlowTwinsLoss"])
def test_half_precision_gives_the_loss_of_the_rounded_rows_in_fp32(name: str) -> None:
    one, other = pair((8, 4), torch.bfloat16)
    loss = getattr(ours, name)()(one, other)
    expected = getattr(ours, name)()(one.double(), other.double())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
