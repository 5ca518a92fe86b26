"""pytorch-metric-learning's losses: value and gradients of the installed package, over labels and edge cases."""

import math

import pytest
import torch

from ssl_fast.dropin import metric_learning as ours
from ssl_fast.dropin.metric_learning.defaults import DefaultLoss
from tests.dropin.same import close, rows, same, value_and_gradients

pml = pytest.importorskip("pytorch_metric_learning")
from pytorch_metric_learning import distances, losses, reducers, regularizers  # noqa: E402

DTYPES = [torch.float64, torch.float32]
MARGINS = ["ArcFaceLoss", "CosFaceLoss", "SubCenterArcFaceLoss"]
PAIRS = ["SupConLoss", "NTXentLoss"]


def both(name: str, dtype: torch.dtype, **options: object) -> tuple[DefaultLoss, torch.nn.Module]:
    torch.manual_seed(0)
    mine = getattr(ours, name)(**options)
    torch.manual_seed(0)
    other = getattr(losses, name)(**options)
    return mine.to(dtype), other.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("scale", [1, 16, 64])
@pytest.mark.parametrize(("num_rows", "num_classes", "dim"), [(2, 3, 4), (17, 10, 8), (33, 5, 3), (1, 2, 2)])
def test_margin_losses(num_rows: int, num_classes: int, dim: int, scale: float, name: str, dtype: torch.dtype) -> None:
    mine, other = both(name, dtype, num_classes=num_classes, embedding_size=dim, scale=scale)
    assert torch.equal(mine.W, other.W), "the same start from the same seed"
    labels = torch.arange(num_rows) * 7 % num_classes
    inputs = [rows(num_rows, dim, dtype=dtype)]
    same(lambda x: mine(x, labels), lambda x: other(x, labels), inputs, ([mine.W], [other.W]))


@pytest.mark.parametrize("degrees", [0.0, 10.0, 28.6, 60.0, 120.0])
def test_margins_of_arcface_in_degrees_on_both_sides_of_pi(degrees: float) -> None:
    for name in ("ArcFaceLoss", "SubCenterArcFaceLoss"):
        mine, other = both(name, torch.float64, num_classes=4, embedding_size=2, margin=degrees, scale=10)
        assert mine.margin == pytest.approx(other.margin)
        angles = torch.linspace(0.01, 2 * math.pi, 97, dtype=torch.float64)
        x = torch.stack((angles.cos(), angles.sin()), 1).requires_grad_()
        labels = torch.arange(97) % 4
        same(lambda x, m=mine: m(x, labels), lambda x, m=other: m(x, labels), [x], ([mine.W], [other.W]))  # noqa: B023


@pytest.mark.parametrize("margin", [0.0, 0.35, 1.2, -0.1])
def test_margins_of_cosface(margin: float) -> None:
    mine, other = both("CosFaceLoss", torch.float64, num_classes=4, embedding_size=3, margin=margin)
    labels = torch.arange(9) % 4
    same(lambda x: mine(x, labels), lambda x: other(x, labels), [rows(9, 3)], ([mine.W], [other.W]))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 0.0015), (torch.float64, 1.5e-6)])
def test_a_sample_on_its_centre_differs_within_the_stated_bound_and_has_a_finite_gradient(
    dtype: torch.dtype, bound: float
) -> None:
    mine, other = both("ArcFaceLoss", dtype, num_classes=3, embedding_size=3, scale=64)
    with torch.no_grad():
        for loss in (mine, other):
            loss.W.copy_(torch.eye(3))
    labels = torch.arange(3)
    x = torch.eye(3, dtype=dtype).requires_grad_()
    value, gradient, _ = value_and_gradients(lambda x: mine(x, labels), [x], [mine.W])
    assert abs(value - other(x, labels)) <= bound * 64 * math.sin(mine.margin)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", MARGINS)
def test_checkpoints_go_both_ways_and_optimisers_take_w(name: str) -> None:
    mine, other = both(name, torch.float32, num_classes=5, embedding_size=6)
    with torch.no_grad():
        other.W.normal_()
    mine.load_state_dict(other.state_dict())
    assert torch.equal(mine.W, other.W) and mine.W.shape == other.W.shape
    steps = [torch.optim.Adam(loss.parameters(), lr=0.1) for loss in (mine, other)]
    for seed in range(3):
        x, labels = rows(8, 6, seed=seed, dtype=torch.float32, grad=False), torch.arange(8) % 5
        for loss, step in zip((mine, other), steps, strict=True):
            step.zero_grad()
            loss(x, labels).backward()
            step.step()
    torch.testing.assert_close(mine.W, other.W, rtol=1e-4, atol=1e-4)
    other.load_state_dict(mine.state_dict())


@pytest.mark.parametrize("name", MARGINS)
def test_logits_of_inference(name: str) -> None:
    mine, other = both(name, torch.float64, num_classes=5, embedding_size=6)
    x = rows(7, 6, grad=False)
    close(mine.get_logits(x), other.get_logits(x), torch.float64)


def test_outliers_and_dominant_centres_of_sub_center_arcface() -> None:
    mine, other = both("SubCenterArcFaceLoss", torch.float64, num_classes=4, embedding_size=3, sub_centers=3)
    x, labels = rows(40, 3, grad=False), torch.arange(40) * 5 % 4
    for threshold in (30, 75, 100):
        outliers, centres = mine.get_outliers(x, labels, threshold)
        expected, expected_centres = other.get_outliers(x, labels, threshold)
        assert torch.equal(outliers, expected.to(outliers))
        close(centres, expected_centres, torch.float64)


def test_w_follows_float64_embeddings() -> None:
    mine, other = both("ArcFaceLoss", torch.float32, num_classes=4, embedding_size=3)
    labels = torch.arange(6) % 4
    same(lambda x: mine(x, labels), lambda x: other(x, labels), [rows(6, 3)])
    assert mine.W.dtype == other.W.dtype == torch.float64


@pytest.mark.parametrize("init", [torch.nn.init.xavier_uniform_, torch.nn.init.zeros_])
def test_weight_init_func(init: object) -> None:
    mine, other = both("CosFaceLoss", torch.float32, num_classes=4, embedding_size=3, weight_init_func=init)
    assert torch.equal(mine.W, other.W)


def test_labels_outside_the_classes_are_refused_minus_one_too() -> None:
    mine = ours.ArcFaceLoss(3, 2)
    for label in (-1, 3):
        with pytest.raises(ValueError, match="labels"):
            mine(torch.randn(1, 2), torch.tensor([label]))


@pytest.mark.parametrize("name", [*MARGINS, *PAIRS])
def test_regularizers_are_added(name: str) -> None:
    shape = {"num_classes": 3, "embedding_size": 4} if name in MARGINS else {}
    options = {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3}
    if name in MARGINS:
        options |= {"weight_regularizer": regularizers.RegularFaceRegularizer(), "weight_reg_weight": 0.2}
    mine, other = both(name, torch.float64, **shape, **options)
    labels = torch.tensor([0, 0, 1, 2, 2])
    parameters = (list(mine.parameters()), list(other.parameters()))
    same(lambda x: mine(x, labels), lambda x: other(x, labels), [rows(5, 4)], parameters)
    assert mine.state_dict().keys() == other.state_dict().keys()


LABELS = {
    "pairs": [0, 1, 2, 3, 0, 1, 2, 3],
    "classes": [0, 0, 0, 1, 1, 2, 2, 2, 2, 1],
    "classes without positives": [0, 0, 1, 2, 3, 3, 3, -1],
    "one pair": [0, 0, 1],
    "no positives": [0, 1, 2, 3],
    "one class": [5, 5, 5, 5],
    "negative labels": [-1, -1, -7, -7, 4, -1],
    "batch of two, same": [1, 1],
    "batch of two, different": [0, 1],
    "one row": [0],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("pattern", LABELS)
def test_pair_losses(pattern: str, temperature: float, name: str, dtype: torch.dtype) -> None:
    mine, other = both(name, dtype, temperature=temperature)
    labels = torch.tensor(LABELS[pattern])
    same(lambda x: mine(x, labels), lambda x: other(x, labels), [rows(len(labels), 5, dtype=dtype)])


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("num_classes", [2, 7, 32, 60])
def test_pair_losses_of_larger_batches(num_classes: int, name: str) -> None:
    mine, other = both(name, torch.float64)
    labels = torch.randint(num_classes, (64,), generator=torch.Generator().manual_seed(0)) - 3
    same(lambda x: mine(x, labels), lambda x: other(x, labels), [rows(64, 8)])


def test_supcon_drops_solved_rows_from_its_average_as_there() -> None:
    mine, other = both("SupConLoss", torch.float64, temperature=0.01)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    x = torch.eye(3, dtype=torch.float64)[labels]
    x[4:] = torch.tensor([[0.0, 0.1, 1.0], [0.0, 0.9, 1.0]])
    got = same(lambda x: mine(x, labels), lambda x: other(x, labels), [x.requires_grad_()])
    assert got > 0


def test_nt_xent_cuts_large_losses_off_there_alone() -> None:
    mine, other = both("NTXentLoss", torch.float32, temperature=0.005)
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.01]])
    labels = torch.tensor([0, 0, 1])
    cut, easy = -math.log(torch.finfo(torch.float32).tiny), math.log(2)  # row 0 with row 1, and row 1 with row 0
    assert other(x, labels).item() == pytest.approx((cut + easy) / 2, rel=1e-3)
    assert mine(x, labels).item() == pytest.approx((2 / 0.005 + easy) / 2, rel=1e-3)


@pytest.mark.parametrize("name", [*MARGINS, *PAIRS])
def test_defaults_given_by_name_are_taken_and_others_refused(name: str) -> None:
    shape = {"num_classes": 3, "embedding_size": 2} if name in MARGINS else {}
    build = getattr(ours, name)
    default = reducers.AvgNonZeroReducer() if name == "SupConLoss" else reducers.MeanReducer()
    build(**shape, distance=distances.CosineSimilarity(), reducer=default)
    for option in (
        {"distance": distances.LpDistance()},
        {"distance": distances.CosineSimilarity(power=2)},
        {"reducer": reducers.DivisorReducer()},
        {"collect_stats": True},
    ):
        with pytest.raises(ValueError, match=next(iter(option))):
            build(**shape, **option)


@pytest.mark.parametrize("name", [*MARGINS, *PAIRS])
def test_calls_that_are_not_served_or_wrong(name: str) -> None:
    loss = getattr(ours, name)(**({"num_classes": 3, "embedding_size": 2} if name in MARGINS else {}))
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    for match, arguments in {
        "indices_tuple": (x, labels, (labels,) * 3),
        "ref_emb": (x, labels, None, x, labels),
        "labels are required": (x,),
        "must equal number of labels": (x, labels[:3]),
        "labels must be a 1D": (x, labels[:, None]),
        "embeddings must be a 2D": (x[:, :, None], labels),
    }.items():
        with pytest.raises(ValueError, match=match):
            loss(*arguments)


def test_half_precision_is_computed_in_fp32() -> None:
    x, labels = rows(8, 4, dtype=torch.bfloat16, grad=False), torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    for name in PAIRS:
        mine, other = both(name, torch.float32)
        assert mine(x, labels).item() == pytest.approx(other(x.double(), labels).item(), rel=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_a_zero_loss_can_be_differentiated(name: str) -> None:
    x = rows(3, 4, dtype=torch.float32)
    getattr(ours, name)()(x, torch.arange(3)).backward()
    assert x.grad is not None and not x.grad.any()
