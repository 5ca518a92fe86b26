import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Every test has its own cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SSL_FAST_CACHE", str(folder))
    return folder
