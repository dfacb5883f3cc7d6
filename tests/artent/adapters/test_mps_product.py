"""base + s·x Aᵀ Bᵀ against dense float64 products: every chain, every grouping, values, gradients, memory."""

from itertools import combinations, pairwise

import peft
import pytest
import torch
from artent import MPSConfig
from artent.adapters.mps import product
from artent.adapters.mps.product import AdaptedOutput
from artent.mps import MPSShape, balanced_sites, contract
from mps_models import chain_shape
from torch.utils._python_dispatch import TorchDispatchMode

N, M, R, SCALING = 24, 30, 5, 0.7
A_SITES = [(24,), (4, 6), (6, 4), (2, 3, 4), (2, 3, 2, 2), (1, 24)]
B_SITES = [(30,), (5, 6), (5, 3, 2)]


def random_cores(shape, dtype=torch.float64):
    return [torch.randn(core, dtype=dtype, requires_grad=True) for core in shape.cores]


def inputs(dtype=torch.float64, tokens=(2, 3)):
    return [torch.randn(*tokens, width, dtype=dtype, requires_grad=True) for width in (N, M)]


def dense(shape, cores):
    """Every core to the whole by einsum, one index a letter: independent of the library's contraction."""
    K = len(cores)
    letters, bonds = "abcd"[:K], "wxyz"[: K - 1]
    left, right = ("r", "") if shape.carrier == "first" else ("", "r")
    terms = [l + d + e for l, d, e in zip((left, *bonds), letters, (*bonds, right))]
    whole = torch.einsum(",".join(terms) + "->r" + letters, *cores)
    return whole.reshape(shape.rank, -1)


def groupings(count):
    cuts = (c for parts in range(count) for c in combinations(range(1, count), parts))
    return [tuple(b - a for a, b in pairwise((0, *cut, count))) for cut in cuts]


@pytest.mark.parametrize("carriers", [("first", "first"), ("first", "last"), ("last", "first"), ("last", "last")])
@pytest.mark.parametrize("b_sites", B_SITES)
@pytest.mark.parametrize("a_sites", A_SITES)
def test_values_and_gradients_are_those_of_the_dense_product_in_every_grouping(a_sites, b_sites, carriers, monkeypatch):
    torch.manual_seed(0)
    a, b = chain_shape(R, a_sites, carriers[0]), chain_shape(R, b_sites, carriers[1], chi=3)
    A, B, (x, base) = random_cores(a), random_cores(b), inputs()
    assert torch.allclose(contract(A, a), dense(a, A), rtol=1e-13, atol=1e-12)
    expected = base + SCALING * x @ dense(a, A).mT @ dense(b, B)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, base, *A, *B])
    for of_a in groupings(len(a_sites)):
        for of_b in groupings(len(b_sites)):
            monkeypatch.setattr(product, "grouping", lambda s, *_, chosen={a: of_a, b: of_b}: chosen[s])
            out = AdaptedOutput.apply(x, base, SCALING, torch.float64, a, b, *A, *B)
            for twice in (False, True):  # where a second derivative may follow the backward pass takes another way
                found = torch.autograd.grad(out, [x, base, *A, *B], weight, create_graph=twice, retain_graph=True)
                for got, want in zip((out, *found), (expected, *wanted)):
                    assert (got - want).norm() <= 1e-13 * want.norm(), (of_a, of_b, twice)


@pytest.mark.parametrize("carrier", ["first", "last"])
@pytest.mark.parametrize("sites", [(12,), (3, 4), (2, 3, 2), (2, 1, 3, 2)])
def test_gradcheck_to_second_order(sites, carrier):
    torch.manual_seed(1)
    a, b = chain_shape(3, sites, carrier, chi=2), chain_shape(3, (2, 4), carrier, chi=2)
    x, base = (torch.randn(2, width, dtype=torch.float64, requires_grad=True) for width in (12, 8))

    def f(x, base, *cores):
        return AdaptedOutput.apply(x, base, SCALING, torch.float64, a, b, *cores)

    args = (x, base, *random_cores(a), *random_cores(b))
    assert torch.autograd.gradcheck(f, args)
    assert torch.autograd.gradgradcheck(f, args)


@pytest.mark.parametrize("frozen", ["x", "base", "A", "B", "one core"])
def test_what_needs_no_gradient_gets_none_and_the_rest_is_unchanged(frozen):
    torch.manual_seed(2)
    a, b = chain_shape(R, (2, 3, 4), "first"), chain_shape(R, (30,), "last")
    named = dict(zip(("x", "base"), inputs())) | {"A": random_cores(a), "B": random_cores(b)}

    def gradients():
        flat = [named["x"], named["base"], *named["A"], *named["B"]]
        for t in flat:
            t.grad = None
        AdaptedOutput.apply(*flat[:2], SCALING, torch.float64, a, b, *flat[2:]).square().sum().backward()
        return [t.grad for t in flat], flat

    whole, _ = gradients()
    still = named["A"][1] if frozen == "one core" else named[frozen]
    for t in still if isinstance(still, list) else [still]:
        t.requires_grad_(False)
    part, flat = gradients()
    for got, want, t in zip(part, whole, flat):
        assert (got is None) if not t.requires_grad else torch.equal(got, want)


@pytest.mark.parametrize("tokens", [(), (0,), (1,), (2, 0, 3), (7,)])
def test_any_number_of_tokens_contiguous_or_not(tokens):
    torch.manual_seed(3)
    a, b = chain_shape(R, (4, 6), "last"), chain_shape(R, (5, 6), "first")
    A, B = random_cores(a), random_cores(b)
    x, base = inputs(tokens=(*tokens,))
    for given in (x, x.detach().mT.contiguous().mT if x.ndim > 1 else x):
        out = AdaptedOutput.apply(given, base, SCALING, torch.float64, a, b, *A, *B)
        assert torch.allclose(out, base + SCALING * given @ dense(a, A).mT @ dense(b, B), rtol=1e-12)
    out.sum().backward()
    assert A[0].grad.shape == A[0].shape


@pytest.mark.parametrize("tokens", [(7,), (2, 3), (2, 1, 3)])
def test_the_output_may_be_written_in_place(tokens):
    """As ``nn.ReLU(inplace=True)`` behind a layer does."""
    torch.manual_seed(3)
    a, b = chain_shape(R, (4, 6), "first"), chain_shape(R, (30,), "last")
    given = [*inputs(tokens=tokens), *random_cores(a), *random_cores(b)]
    found = []
    for relu in (torch.relu, torch.relu_):
        out = relu(AdaptedOutput.apply(*given[:2], SCALING, torch.float64, a, b, *given[2:]))
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    assert all(torch.equal(kept, written) for kept, written in zip(*found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_as_exact_as_loras_products(dtype):
    """Against float64 of the same parameters, within 1.5 × LoRA's own error: A is rounded once more, no else."""
    torch.manual_seed(4)
    a, b = chain_shape(16, (16, 32), "first", chi=16), chain_shape(16, (256,), "last")
    A = [(core / 4).detach().to(dtype) for core in random_cores(a)]
    B = [(core / 4).detach().to(dtype) for core in random_cores(b)]
    x, base = torch.randn(64, 512, dtype=dtype), torch.randn(64, 256, dtype=dtype)
    exact_A = dense(a, [core.double() for core in A])
    truth = base.double() + x.double() @ exact_A.mT @ B[0].double().mT
    rounded_A = exact_A.to(dtype)
    lora = base + (x @ rounded_A.mT) @ B[0].mT
    ours = AdaptedOutput.apply(x, base, 1.0, dtype, a, b, *A, *B)
    assert ours.dtype == dtype
    lora_truth = base.double() + x.double() @ rounded_A.double().mT @ B[0].double().mT
    assert (ours.double() - truth).norm() <= 1.5 * (lora.double() - lora_truth).norm() + 1.5 * (
        lora_truth - truth
    ).norm()


def adapted(config, width=512, rank=64):
    torch.manual_seed(5)
    return peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(width, width, bias=False)), config(rank))


def lora(rank):
    return peft.LoraConfig(r=rank, target_modules=["0"])


def saved_bytes(model, x):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(kept.values())


@pytest.mark.parametrize("options", [{}, {"sites": 3}, {"carrier": "last"}, {"tensorize": "both", "chi": 4}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_is_saved_than_lora_saves(dtype, options):
    x = torch.randn(96, 512).to(dtype).requires_grad_()
    ours = adapted(lambda r: MPSConfig(r=r, target_modules=["0"], **({"chi": 8} | options))).to(dtype)
    theirs = adapted(lora).to(dtype)
    assert saved_bytes(ours, x) <= saved_bytes(theirs, x)


class _Largest(TorchDispatchMode):
    """The largest storage that any operator hands out."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("sites", ["balanced", 3])
@pytest.mark.parametrize("carrier", ["first", "last"])
def test_nothing_of_outputs_by_inputs_is_ever_formed(sites, carrier):
    n = m = 4096
    torch.manual_seed(6)
    sites = balanced_sites(n, 2 if sites == "balanced" else sites)
    a, b = chain_shape(16, sites, carrier, chi=8), MPSShape(16, (m,), (), "last")
    x, base = torch.randn(8, n, requires_grad=True), torch.randn(8, m)
    with _Largest() as seen:
        out = AdaptedOutput.apply(x, base, 1.0, torch.float32, a, b, *random_cores(a, None), *random_cores(b, None))
        out.sum().backward()
    assert 0 < seen.largest <= 16 * max(n, m)


@pytest.mark.parametrize("r", [8, 64])  # where the cores are contracted first, and where they are not
def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients(r):
    model = adapted(lambda r: MPSConfig(r=r, chi=8, target_modules=["0"], init_weights=False), rank=r)
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = []

    def pack(tensor):
        hidden.extend([tensor.dtype] * (tensor.shape == (32, r)))
        return tensor

    x = torch.randn(32, 512)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(x)
        inside = torch.autograd.grad(out, trained, out.detach(), retain_graph=True)
    reference = model(x)
    outside = torch.autograd.grad(out, trained, out.detach())
    assert (out.dtype, hidden) == (torch.bfloat16, [torch.bfloat16])
    assert (out - reference).norm() <= 4 * torch.finfo(torch.bfloat16).eps * reference.norm()
    assert all(grad.dtype == torch.float32 for grad in inside)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))


def test_autocast_leaves_float64_alone():
    model = adapted(lambda r: MPSConfig(r=r, chi=8, target_modules=["0"], init_weights=False)).double()
    x = torch.randn(4, 512, dtype=torch.float64)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
def test_a_merged_bfloat16_weight_is_rounded_once(adapters):
    torch.manual_seed(9)
    config = MPSConfig(r=8, chi=8, target_modules=["0"], init_weights=False)
    base = torch.nn.Sequential(torch.nn.Linear(512, 256, bias=False)).bfloat16()
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=adapters == torch.float32)
    model.add_adapter("second", config, autocast_adapter_dtype=adapters == torch.float32)
    layer = model.base_model.model[0]
    exact = layer.base_layer.weight.double()
    for name in ("default", "second"):
        A, B = layer.artent_mps_A[name], layer.artent_mps_B[name].weight.detach()
        assert {core.dtype for core in (*A.cores, B)} == {adapters}
        exact = exact + B.double() @ dense(A.shape, [core.detach().double() for core in A.cores])  # r = lora_alpha
    model.merge_adapter(adapter_names=["default", "second"])
    best = (exact.bfloat16() - exact).abs()
    assert ((layer.base_layer.weight - exact).abs() <= best + 1e-5 * exact.abs().max()).all()
