"""An adapter before training: its sizes, LoRA's variance, and a zero that gradients come through."""

import math

import peft
import pytest
import torch
from artent import MPSConfig
from artent.adapters.mps.layer import Factor
from artent.mps import balanced_sites
from mps_models import chain_shape


def adapted(config, inputs=512, outputs=512):
    return peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False)), config)


@pytest.mark.parametrize(
    ("sites", "chi", "carrier"),
    [
        ((256,), 0, "first"),
        ((16, 16), 1, "first"),
        ((16, 16), 8, "last"),
        ((32, 8), 64, "last"),
        ((4, 8, 8), 5, "first"),
    ]
    + [((4, 4, 4, 4), 3, "last"), ((4, 4, 4, 4), 16, "first"), ((1, 256), 4, "first")],
)
def test_the_cores_start_with_loras_variance(sites, chi, carrier):
    """The mean square of A over draws is 1/(3n): LoRA's kaiming_uniform_(a=√5). Within five standard errors."""
    torch.manual_seed(7)
    factor = Factor(chain_shape(8, sites, carrier, chi))
    squares = []
    for _ in range(400):
        factor.reset(1 / (3 * 256))
        squares.append(factor.matrix(torch.float64).square().mean())
    squares = torch.stack(squares)
    assert abs(squares.mean() - 1 / 768) <= 5 * squares.std() / math.sqrt(len(squares))
    like = torch.nn.init.kaiming_uniform_(torch.empty(4096, 256), a=math.sqrt(5)).square().mean()
    assert abs(like - 1 / 768) <= 0.01 / 768


@pytest.mark.parametrize("tensorize", ["A", "B", "both"])
def test_an_adapter_starts_as_loras_does(tensorize):
    """A of every layer within five standard errors of LoRA's own mean square; B zero, or random of 1/(3r)."""
    torch.manual_seed(8)

    def squares(config, factor):
        layers = [adapted(config, 256, 64).base_model.model[0] for _ in range(100)]
        return torch.stack([factor(layer).detach().square().mean() for layer in layers])

    chain = {"r": 4, "chi": 3, "sites": 3, "tensorize": tensorize, "target_modules": ["0"]}
    lora = squares(peft.LoraConfig(r=4, target_modules=["0"]), lambda layer: layer.lora_A["default"].weight)
    for config in (MPSConfig(**chain), MPSConfig(**chain, init_weights=False)):
        A = squares(config, lambda layer: layer.artent_mps_A["default"].matrix(torch.float32))
        error = math.hypot(A.std() / 10, lora.std() / 10)
        assert abs(A.mean() - lora.mean()) <= 5 * error < 0.5 * lora.mean()
        B = squares(config, lambda layer: layer.artent_mps_B["default"].matrix(torch.float32))
        if config.init_weights:
            assert (B == 0).all()
        else:
            assert abs(B.mean() - 1 / 12) <= 5 * B.std() / 10 < 0.5 / 12


@pytest.mark.parametrize("carrier", ["first", "last"])
@pytest.mark.parametrize("sites", [2, 4])
@pytest.mark.parametrize("tensorize", ["A", "B", "both"])
def test_a_zero_start_still_has_a_gradient(tensorize, sites, carrier):
    model = adapted(MPSConfig(chi=4, tensorize=tensorize, sites=sites, carrier=carrier, target_modules=["0"]))
    x = torch.randn(4, 512)
    layer = model.base_model.model[0]
    assert torch.equal(model(x), layer.base_layer(x))
    assert (layer.get_delta_weight("default") == 0).all()
    model(x).square().sum().backward()
    A, B = layer.artent_mps_A["default"], layer.artent_mps_B["default"]
    moved = B.cores[B.shape.carrier_index]
    for core in (*A.cores, *B.cores):
        assert bool(core.grad.any()) == (core is moved)
    with torch.no_grad():
        moved -= 0.1 * moved.grad
    model(x).square().sum().backward()
    assert all(core.grad.norm() > 0 for core in (*A.cores, *B.cores))


def test_the_papers_parameter_count():
    """4096 × 4096, r = 256, χ = 32, sites (64, 64): 64·32 + 32·64·256 + 4096·256 against LoRA's 2·4096·256."""
    model = adapted(MPSConfig(r=256, chi=32, sites=(64, 64), target_modules=["0"]), 4096, 4096)
    assert model.get_nb_trainable_parameters()[0] == 64 * 32 + 32 * 64 * 256 + 4096 * 256 == 1_574_912


def test_balanced_sites_multiply_to_the_dimension_and_are_as_even_as_divisors_allow():
    for count in (2, 3, 4, 5):
        assert all(balanced_sites(d**count, count) == (d,) * count for d in range(1, 17))
    for n in (1, 2, 7, 24, 257, 768, 2048, 4096, 11008, 14336):
        for count in (2, 3, 4):
            sites = balanced_sites(n, count)
            assert len(sites) == count
            assert math.prod(sites) == n
            assert list(sites) == sorted(sites)
        small = balanced_sites(n)[0]
        assert not any(n % d == 0 for d in range(small + 1, math.isqrt(n) + 1))
