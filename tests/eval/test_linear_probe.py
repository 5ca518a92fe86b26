"""Linear probes against scikit-learn and against what must hold."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_fast.eval.linear_probe import LinearProbeConfig, linear_probe


def clusters(num: int, seed: int, classes: int = 6, features: int = 12) -> tuple[Tensor, Tensor]:
    """Overlapping classes with very unequal feature scales: h [num, features], y [num]."""
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (num,), generator=generator)
    h = centres[y] + 0.8 * torch.randn(num, features, generator=generator)
    return 5 + h * torch.logspace(-2, 1, features), y


def test_logistic_agrees_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    (train_h, train_y), (val_h, val_y), (test_h, test_y) = (clusters(n, s) for n, s in ((600, 0), (100, 1), (200, 2)))
    config = LinearProbeConfig(solver="logistic", c=[0.05], max_iterations=1000)
    scores, head = linear_probe(train_h, train_y, test_h, test_y, config, val_h=val_h, val_y=val_y)
    mean, std = train_h.double().mean(0), train_h.double().std(0, correction=0)
    oracle = linear_model.LogisticRegression(C=0.05, tol=1e-8, max_iter=5000)
    oracle.fit(((train_h - mean) / std).numpy(), train_y.numpy())
    expected = oracle.predict_proba(((test_h - mean) / std).numpy())
    np.testing.assert_allclose(head(test_h).softmax(1).detach().numpy(), expected, atol=5e-4)
    assert scores["top1"] == pytest.approx((expected.argmax(1) == test_y.numpy()).mean())


def test_sgd_reaches_what_logistic_regression_reaches() -> None:
    (train_h, train_y), (test_h, test_y) = clusters(1500, 0), clusters(1000, 1)
    sgd, _ = linear_probe(train_h, train_y, test_h, test_y, LinearProbeConfig(epochs=30))
    logistic, _ = linear_probe(train_h, train_y, test_h, test_y, LinearProbeConfig(solver="logistic"))
    assert logistic["top1"] > 0.7
    assert abs(sgd["top1"] - logistic["top1"]) < 0.02


@pytest.mark.parametrize("solver", ["sgd", "logistic"])
def test_the_head_takes_features_as_they_are(solver: str) -> None:
    (train_h, train_y), (test_h, test_y) = clusters(400, 0), clusters(300, 1)
    scores, head = linear_probe(train_h, train_y, test_h, test_y, LinearProbeConfig(solver=solver, epochs=10))
    assert (head(test_h).argmax(1) == test_y).double().mean().item() == pytest.approx(scores["top1"])
    assert (head(train_h).argmax(1) == train_y).double().mean().item() == pytest.approx(scores["train_top1"])


def test_a_sweep_trains_each_rate_as_if_alone() -> None:
    train_h, train_y = clusters(300, 0)
    val_h, val_y = clusters(100, 1)

    def head(rates: list[float]) -> tuple[float, Tensor]:
        config = LinearProbeConfig(epochs=3, learning_rates=rates, batch_size=64, weight_decay=1e-3)
        scores, fitted = linear_probe(train_h, train_y, val_h, val_y, config, val_h=val_h, val_y=val_y)
        return scores["protocol"]["learning_rate"], fitted.weight.detach()

    chosen, together = head([0.001, 0.1, 1e38])
    assert chosen in (0.001, 0.1)  # the diverged rate neither wins nor spoils the others
    torch.testing.assert_close(together, head([chosen])[1], rtol=1e-4, atol=1e-6)


def test_the_choice_is_made_on_validation_samples_never_on_test() -> None:
    train_h, train_y = clusters(300, 0)
    val_h, val_y = clusters(200, 1)
    config = LinearProbeConfig(epochs=3)
    first, head = linear_probe(train_h, train_y, val_h, val_y, config, val_h=val_h, val_y=val_y)
    other, same = linear_probe(train_h, train_y, -val_h, val_y, config, val_h=val_h, val_y=val_y)
    assert torch.equal(head.weight, same.weight)
    assert first["val_top1"] == other["val_top1"] == first["top1"] != other["top1"]


def test_without_validation_features_a_share_of_training_is_held_out_and_returned() -> None:
    (train_h, train_y), (test_h, test_y) = clusters(500, 0), clusters(100, 1)
    scores, _ = linear_probe(train_h, train_y, test_h, test_y, LinearProbeConfig(epochs=2))
    protocol = scores["protocol"]
    assert protocol["num_train"] == 500
    assert protocol["num_val"] == pytest.approx(50, abs=6)
    assert "held out" in protocol["chosen_on"]


def test_the_same_call_gives_the_same_bits() -> None:
    (train_h, train_y), (test_h, test_y) = clusters(300, 0), clusters(100, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, head = linear_probe(train_h, train_y, test_h, test_y, LinearProbeConfig(epochs=3))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second, again = linear_probe(train_h, train_y, test_h, test_y, LinearProbeConfig(epochs=3))
    assert first == second
    assert torch.equal(head.weight, again.weight)


def test_works_inside_inference_mode_and_with_constant_features() -> None:
    (train_h, train_y), (test_h, test_y) = clusters(200, 0), clusters(100, 1)
    train_h[:, 0], test_h[:, 0] = 3.0, 3.1
    with torch.no_grad():
        scores, head = linear_probe(train_h, train_y, test_h, test_y, LinearProbeConfig(epochs=5))
    assert scores["top1"] > 0.5
    assert head.weight.isfinite().all()


def test_protocol_states_solver_scaling_and_layer() -> None:
    (train_h, train_y), (test_h, test_y) = clusters(200, 0), clusters(100, 1)
    config = LinearProbeConfig(solver="logistic", standardize=False, c=[0.1], max_iterations=5)
    protocol = linear_probe(train_h, train_y, test_h, test_y, config, layer="projector 2")[0]["protocol"]
    assert {"c": 0.1, "normalisation": "none", "feature_layer": "projector 2"}.items() <= protocol.items()
    assert "learning_rate" not in protocol


def test_errors_name_the_argument() -> None:
    h, y = clusters(50, 0)
    with pytest.raises(ValueError, match=r"train_y: .* got None"):
        linear_probe(h, None, h, y)
    with pytest.raises(ValueError, match=r"test_y: .* got None"):
        linear_probe(h, y, h, None)
    with pytest.raises(ValueError, match=r"val_y: .* got None"):
        linear_probe(h, y, h, y, val_h=h)
    with pytest.raises(ValueError, match=r"expected two samples of some class"):
        linear_probe(h[:3], torch.arange(3), h, y)
    with pytest.raises(ValueError, match=r"solver: expected one of sgd, logistic, got 'adam'"):
        LinearProbeConfig(solver="adam")
    with pytest.raises(ValueError, match=r"learning_rates: expected at least one positive number"):
        LinearProbeConfig(learning_rates=[])
    with pytest.raises(RuntimeError, match=r"every setting diverged"):
        linear_probe(h, y, h, y, LinearProbeConfig(learning_rates=[1e38]))
