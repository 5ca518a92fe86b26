"""MarginHead: the losses by name, their moving averages, Partial FC and the state_dict; sampling of classes."""

import pytest
import torch

from ssl_fast import MarginHead, adaface, arcface, combined_margin, cosface, curricularface
from ssl_fast.ops.adaface import norm_statistics
from ssl_fast.ops.curricularface import mean_target_cosine
from ssl_fast.ops.partial_fc import sample_classes
from tests.ops.margin_cases import samples


def head_and_data(loss: str, **options):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    x, _, labels = samples(12, 30, 8)
    return MarginHead(8, 30, loss=loss, **options), x.detach().float() * 10, labels


@pytest.mark.parametrize(
    ("loss", "function", "options"),
    [
        ("arcface", arcface, {"margin_grad": "straight_through", "scale": 32.0}),
        ("cosface", cosface, {"sub_centers": 3, "margin": 0.3}),
        ("combined_margin", combined_margin, {"m3": 0.1, "reduction": "sum"}),
    ],
)
def test_head_is_the_function(loss, function, options) -> None:  # type: ignore[no-untyped-def]
    head, x, labels = head_and_data(loss, **options)
    options.pop("sub_centers", None)
    assert torch.equal(head(x, labels), function(x, head.weight, labels, **options))
    assert set(head.state_dict()) == {"weight"} and f"loss={loss!r}" in repr(head)


def test_adaface_keeps_averages_of_the_lengths() -> None:
    head, x, labels = head_and_data("adaface")
    norms = x.norm(dim=1)
    value = head(x, labels)
    torch.testing.assert_close(head.norm_mean, 0.99 * 20 + 0.01 * norms.mean())
    torch.testing.assert_close(head.norm_std, 0.99 * 100 + 0.01 * norms.std())
    expected = adaface(x, head.weight, labels, norm_mean=head.norm_mean, norm_std=head.norm_std)
    assert torch.equal(value, expected)
    before = head.norm_mean.clone()
    head.eval()(x, labels)
    assert torch.equal(head.norm_mean, before)
    head.train()(x[:1], labels[:1])
    assert head.norm_std.isfinite() and head.norm_mean != before
    count, mean, std = norm_statistics(x[:0])
    assert count == 0 and mean == 0 and std == 0


def test_curricularface_keeps_the_average_of_the_targets_cosines() -> None:
    head, x, labels = head_and_data("curricularface", momentum=0.9)
    labels[3] = -1
    value = head(x, labels)
    kept = labels >= 0
    cosine = torch.nn.functional.cosine_similarity(x[kept], head.weight.detach()[labels[kept]])
    torch.testing.assert_close(head.hardness, 0.1 * cosine.mean())
    assert torch.equal(value, curricularface(x, head.weight, labels, hardness=head.hardness))
    assert mean_target_cosine(x[:0], head.weight, labels[:0]).isnan()
    before = head.hardness.clone()
    head(x, torch.full_like(labels, -1)), head(x[:0], labels[:0])
    assert torch.equal(head.hardness, before)  # of a batch without a class there is no average
    head(x, labels)  # the average has moved on ...
    value.backward()  # ... and the first graph still holds its own
    assert head.weight.grad is not None and bool(head.weight.grad.isfinite().all())


def test_state_dict_goes_from_head_to_head() -> None:
    head, x, labels = head_and_data("curricularface")
    head(x, labels)
    other = MarginHead(8, 30, loss="curricularface")
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.weight, head.weight) and torch.equal(other.hardness, head.hardness)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        MarginHead(8, 31, loss="curricularface").load_state_dict(head.state_dict())


def test_wrong_heads_are_named() -> None:
    with pytest.raises(ValueError, match=r"loss must be one of arcface, .*got 'sphere'"):
        MarginHead(8, 30, loss="sphere")
    with pytest.raises(ValueError, match="must be positive, got 8, 0 and 1"):
        MarginHead(8, 0)


@pytest.mark.parametrize(("rate", "num_rows", "kept"), [(0.1, 20, 50), (0.01, 20, 20), (1.0, 20, 500), (0.1, 900, 500)])
def test_sampled_classes_hold_every_target(rate: float, num_rows: int, kept: int) -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(-2, 500, (num_rows,), generator=generator)
    rows, places = sample_classes(target, 500, rate, generator)
    assert len(rows) == kept and (rows.diff() > 0).all() and rows[0] >= 0 and rows[-1] < 500
    assert torch.equal(rows[places[target >= 0]], target[target >= 0])
    assert torch.equal(places[target < 0], target[target < 0])
    again, _ = sample_classes(target, 500, rate, generator)
    assert kept in (500, len(target)) or not torch.equal(again, rows), "other negatives every time"


def test_sampling_draws_negatives_evenly() -> None:
    generator, target = torch.Generator().manual_seed(2), torch.tensor([7])
    counts = torch.zeros(100)
    for _ in range(2000):
        counts[sample_classes(target, 100, 0.2, generator)[0]] += 1
    assert counts[7] == 2000
    others = torch.cat((counts[:7], counts[8:])) / 2000
    assert (others - 19 / 99).abs().max() < 0.045  # 5 standard deviations


def test_a_sampled_head_moves_the_drawn_classes_alone() -> None:
    head, x, labels = head_and_data("arcface", sample_rate=0.5, generator=torch.Generator().manual_seed(0))
    value = head(x, labels)
    value.backward()
    assert head.weight.grad is not None
    moved = head.weight.grad.any(1)
    assert moved.sum() == 15 and bool(moved[labels].all())
    drawn = moved.nonzero().squeeze(1)
    expected = arcface(x, head.weight[drawn], torch.searchsorted(drawn, labels))
    torch.testing.assert_close(value, expected)
