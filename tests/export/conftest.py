"""A small model, and the builder of engines where it is installed."""

from __future__ import annotations

import pytest

from ssl_fast.export.tensorrt import Api, load_api
from ssl_fast.models.backbone import Backbone, BackboneConfig
from tests.export.models import preprocessing, trained_like


@pytest.fixture(scope="session")
def small_preprocessing() -> dict:
    return preprocessing(32)


@pytest.fixture(scope="session")
def small() -> Backbone:
    """1/40 of a ResNet-18 for 32 px: exports in about a second."""
    return trained_like(BackboneConfig(cifar_stem=True, width=8, depth="1,1,1,1"), 32)


@pytest.fixture(scope="session")
def rtx() -> Api:
    try:
        return load_api("tensorrt_rtx")
    except RuntimeError as error:
        pytest.skip(str(error))
