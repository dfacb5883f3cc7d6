"""Fixtures: a seed, every attention sample, every op of the family, every dtype."""

from __future__ import annotations

import pytest
import torch
from attention_samples import KINDS, OPS, SAMPLES


def pytest_generate_tests(metafunc):
    if "sample" in metafunc.fixturenames:
        metafunc.parametrize("sample", SAMPLES, ids=lambda s: s.name)
    if "sample_kind" in metafunc.fixturenames:
        metafunc.parametrize("sample_kind", KINDS, ids=lambda s: s.name)
    if "op" in metafunc.fixturenames:
        metafunc.parametrize("op", OPS)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def _seeded():
    """The same numbers every time, and for every test alone."""
    torch.manual_seed(0)
