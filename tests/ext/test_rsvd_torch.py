"""rsvd as a citizen of PyTorch: opcheck, torch.compile, autocast, fake and meta tensors, torch.func."""

import pytest
import torch
from rsvd_samples import matrix

import artent_ext
from artent_ext._rsvd_ops import fits_a_block

ops = torch.ops.artent

# (B, m, n), rank, oversample, power_iters, seeds
CALLS = {
    "tall": ((3, 20, 12), 4, 3, 2, 1),
    "wide": ((3, 12, 20), 4, 3, 2, 1),
    "a seed each": ((3, 10, 10), 2, 2, 1, 3),
    "rank beyond the sides": ((2, 5, 4), 9, 9, 0, 1),
    "no matrix": ((0, 5, 4), 2, 1, 1, 1),
    "no rows": ((2, 0, 4), 2, 1, 1, 1),
}


@pytest.mark.parametrize(("shape", "rank", "oversample", "power_iters", "seeds"), CALLS.values(), ids=CALLS)
def test_opcheck(shape, rank, oversample, power_iters, seeds):
    dtype = torch.bfloat16 if seeds > 1 else torch.float64
    A = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    torch.library.opcheck(ops.rsvd, (A, rank, oversample, power_iters, torch.arange(seeds)))


def test_opcheck_of_the_parts():
    seed = torch.tensor([3])
    Y, R = torch.randn(2, 9, 4), torch.randn(2, 4, 4, dtype=torch.float64)
    A, U, S, Vh = torch.randn(2, 9, 7), torch.randn(2, 9, 4), torch.rand(2, 4), torch.randn(2, 4, 7)
    needed = torch.tensor([True, False])
    torch.library.opcheck(ops.rsvd_sketch, (seed, 5, 3, torch.float32))
    torch.library.opcheck(ops.rsvd_orthonormalise, (Y, 0, seed))
    torch.library.opcheck(ops.rsvd_jacobi, (R,))
    torch.library.opcheck(ops.rsvd_residual, (A, U, S, Vh, needed))
    A = torch.randn(2, 9, 7, dtype=torch.float64)
    U, S, Vh = (x.detach().requires_grad_() for x in artent_ext.rsvd(A, 2)[:3])
    arguments = (A.requires_grad_(), U, S, Vh, torch.randn_like(U), torch.randn_like(Vh.mT).contiguous())
    torch.library.opcheck(ops.rsvd_remainder_solve, arguments)


FUNCTIONS = {
    "rank": lambda A: artent_ext.rsvd(A, 5),
    "rank and tol": lambda A: artent_ext.rsvd(A, 5, tol=0.3, seed=7),
    "tol": lambda A: artent_ext.rsvd(A, tol=0.3),
    "svd_lowrank": lambda A: artent_ext.svd_lowrank(A, 5, M=A.mean(-2, keepdim=True)),
}


def _loss(outputs):
    return sum(x.double().square().square().sum() for x in outputs if x.is_floating_point())


@pytest.mark.parametrize(("name", "dynamic"), [*((name, True) for name in FUNCTIONS), ("rank and tol", False)])
def test_compiles_without_graph_breaks(name, dynamic):
    function = FUNCTIONS[name]
    torch.compiler.reset()  # every case compiles the same lambda
    compiled = torch.compile(lambda A: function(A * 2), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (20, 26):
        A = matrix(0.6 ** torch.arange(18.0), rows, 18, (2, 3)).requires_grad_()
        results = []
        for call in (lambda A: function(A * 2), compiled):
            outputs = call(A)
            results.append((*outputs, torch.autograd.grad(_loss(outputs), A)[0]))
        torch.testing.assert_close(results[0], results[1])


def test_compiles_with_the_default_backend():
    A = torch.randn(3, 24, 16)
    compiled = torch.compile(lambda A: artent_ext.rsvd(A.sin(), 4, tol=0.1).S.exp(), fullgraph=True)
    torch.testing.assert_close(compiled(A), artent_ext.rsvd(A.sin(), 4, tol=0.1).S.exp())


def test_an_operator_made_and_decomposed_in_a_compiled_function():
    def function(A):
        return artent_ext.rsvd(artent_ext.Operator.from_factors(A, A.mT), 3, tol=0.3).residual

    A = torch.randn(20, 9)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(A), function(A))


def test_autocast_leaves_it_alone():
    A = matrix(0.5 ** torch.arange(20.0), 30, 20).float().requires_grad_()
    plain = artent_ext.rsvd(A, 4)
    expected = torch.autograd.grad(_loss(plain), A)[0]
    operator = artent_ext.Operator.from_factors(torch.randn(30, 3), torch.randn(3, 20))
    alone = artent_ext.rsvd(operator, 3)
    with torch.autocast("cpu", torch.bfloat16):
        result = artent_ext.rsvd(A, 4)
        gradient = torch.autograd.grad(_loss(result), A)[0]
        inside = artent_ext.rsvd(operator, 3)
    assert all(torch.equal(x, y) for x, y in zip(result, plain, strict=True))
    assert torch.equal(gradient, expected)
    torch.testing.assert_close(inside.U @ inside.U.mT, alone.U @ alone.U.mT)


def test_fake_and_meta_tensors_get_shapes():
    meta = artent_ext.rsvd(torch.empty(2, 60, 50, device="meta"), tol=0.1)
    assert (meta.U.shape, meta.ranks.shape, meta.U.device.type) == ((2, 60, 50), (2,), "meta")
    with torch._subclasses.FakeTensorMode():
        fake = artent_ext.rsvd(torch.randn(4, 60, 50, dtype=torch.bfloat16), 3)
    assert (fake.Vh.shape, fake.Vh.dtype, fake.residual.dtype) == ((4, 3, 50), torch.float32, torch.float64)


# function of a 6×5 tensor, which op refuses
DERIVATIVES = {
    "rsvd": (lambda A: artent_ext.rsvd(A, 2).S, "rsvd"),
    "svd_lowrank": (lambda A: artent_ext.svd_lowrank(A, 2)[1], "svd_lowrank"),
    "svd_lowrank, its M": (lambda M: artent_ext.svd_lowrank(torch.ones(6, 5), 2, M=M)[1], "svd_lowrank"),
    "attention_stats": (lambda A: artent_ext.attention_stats(A, torch.ones(7, 5)).purity, "attention_stats"),
    "attention_entropy, keys": (lambda A: artent_ext.attention_entropy(torch.ones(7, 5), A), "attention_stats"),
    "attention_entropy, mask": (
        lambda A: artent_ext.attention_entropy(torch.ones(6, 3), torch.ones(5, 3), attn_mask=A),
        "attention_stats",
    ),
}


@pytest.mark.parametrize(("function", "name"), DERIVATIVES.values(), ids=DERIVATIVES)
def test_derivatives_other_than_autograds_are_refused_and_not_zero(function, name):
    A, message = torch.randn(6, 5), f"{name} has no forward-mode derivative"
    forward_ad, func = torch.autograd.forward_ad, torch.func
    for transform in (
        lambda: func.jvp(function, (A,), (A,)),
        lambda: func.jacfwd(function)(A),
        lambda: func.jvp(func.vmap(function), (A[None],), (A[None],)),
        lambda: torch.compile(lambda A: func.jvp(function, (A,), (A,)), backend="eager")(A),
    ):
        with pytest.raises(NotImplementedError, match=message):
            transform()
    with forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match=message):
            function(forward_ad.make_dual(A, A))
        expected = function(A)  # no tangent, nothing to refuse
    scaled = func.jvp(lambda s: function(A) * s, (torch.tensor(3.0),), (torch.tensor(2.0),))
    torch.testing.assert_close(scaled, (3 * expected, 2 * expected))
    for transform in (func.grad(lambda A: function(A).sum()), func.jacrev(function)):
        with pytest.raises(NotImplementedError, match=f"{name} has no torch.func derivative"):
            transform(A)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop():
    A = torch.stack([matrix(d ** torch.arange(40.0), 45, 40) for d in (0.5, 0.95, 0.3)])
    B = torch.randn(3, 20, 2)
    functions = {
        "rank": (lambda A: artent_ext.rsvd(A, 3), A),
        "tol": (lambda A: artent_ext.rsvd(A, tol=0.05).S, A[:, :30, :30]),
        "svd_lowrank": (lambda A: artent_ext.svd_lowrank(A, 3, M=A.mean(0)), A),
        "operator": (lambda B: artent_ext.rsvd(artent_ext.Operator.from_factors(B, B.mT), 3).S, B),
    }
    for function, x in functions.values():
        ours, truth = torch.vmap(function)(x), [function(each) for each in x]
        if isinstance(ours, torch.Tensor):
            ours, truth = (ours,), [(each,) for each in truth]
        for result, each in zip(ours, zip(*truth, strict=True), strict=True):
            torch.testing.assert_close(result, torch.stack(each))
    bad = A.index_fill(0, torch.tensor(1), float("nan"))
    assert torch.vmap(lambda A: artent_ext.rsvd(A, 3).S)(bad).isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 3), 2, 1, 1, torch.zeros(1, dtype=torch.int64)), "2-d"),
        ((torch.zeros(2, 4, 3), 2, 1, 1, torch.zeros(3, dtype=torch.int64)), "seed"),
        ((torch.zeros(2, 4, 3), 2, 1, 1, torch.zeros(1)), "seed"),
        ((torch.zeros(2, 4, 3), -1, 1, 1, torch.zeros(1, dtype=torch.int64)), "rank"),
    ],
)
def test_a_direct_call_is_checked_with_and_without_data(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        ops.rsvd(*arguments)
    A, *rest, seed = arguments
    with pytest.raises(RuntimeError, match=message):
        ops.rsvd(A.to("meta"), *rest, seed.to("meta"))


def test_the_cuda_route_asks_what_a_block_can_hold():
    """All of the fused op's sizes within the 163 KiB of A100, the small ones within the 99 KiB of gaming cards."""
    large, gaming = 163 * 1024, 99 * 1024
    assert fits_a_block(512, 512, 64, torch.bfloat16, large)
    assert fits_a_block(512, 512, 32, torch.float64, large)
    assert not fits_a_block(512, 512, 33, torch.float64, large)
    assert not fits_a_block(513, 20, 16, torch.float32, large)
    assert fits_a_block(128, 128, 16, torch.float32, gaming)
    assert not fits_a_block(512, 512, 64, torch.float32, gaming)
