import numpy as np
import pytest
import torch
from artent import updates
from artent.updates import LoRAUpdate, MPSUpdate, check_matrix, contract_cores


def test_a_lora_update_is_its_product():
    B, A = torch.randn(5, 2), torch.randn(2, 7)
    update = LoRAUpdate(B, A, scaling=0.5)
    assert (update.shape, update.rank) == ((5, 7), 2)
    torch.testing.assert_close(update.dense(), 0.5 * B @ A)


CORES = {
    "rank last": ([(3, 4), (4, 5, 2)], "ai,ibr->abr", 15),
    "rank first": ([(2, 3, 4), (4, 5)], "rai,ib->abr", 15),
    "three cores": ([(2, 3), (3, 2, 4), (4, 5, 2)], "ai,ibj,jcr->abcr", 20),
    "three, mirrored": ([(2, 2, 3), (3, 2, 4), (4, 5)], "rai,ibj,jc->abcr", 20),
}


@pytest.mark.parametrize("case", CORES)
def test_cores_contract_as_the_sum_over_bonds(case):
    shapes, formula, length = CORES[case]
    cores = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    expected = np.einsum(formula, *(core.numpy() for core in cores)).reshape(length, 2)
    np.testing.assert_allclose(contract_cores("A", cores).numpy(), expected, rtol=1e-12)
    B = torch.randn(6, 2, dtype=torch.float64)
    update = MPSUpdate(B, cores, scaling=2.0)
    assert (update.shape, update.rank) == ((6, length), 2)
    np.testing.assert_allclose(update.dense().numpy(), 2 * B.numpy() @ expected.T, rtol=1e-12)
    mirrored = MPSUpdate(cores, torch.randn(2, 6, dtype=torch.float64))
    assert (mirrored.shape, mirrored.rank) == ((length, 6), 2)
    assert mirrored.factors()[0].shape == (length, 2)
    half = MPSUpdate(B.bfloat16(), [core.bfloat16() for core in cores])
    exact = MPSUpdate(half.B.double(), [core.double() for core in half.A])
    assert half.dense().dtype == torch.bfloat16
    assert all(torch.equal(*pair) for pair in zip(half.factors(torch.float64), exact.factors()))


@pytest.mark.parametrize("case", CORES)
def test_shapes_are_read_off_the_cores_without_contracting_them(case, monkeypatch):
    shapes, _, length = CORES[case]
    monkeypatch.setattr(updates, "contract", lambda *_: pytest.fail("contracted"))
    cores = [torch.ones(shape) for shape in shapes]
    update = MPSUpdate(cores, torch.ones(2, 6))
    assert (update.shape, update.rank) == ((length, 6), 2)
    chain, dense = update.chains
    assert (chain.cores, chain.rank, chain.dimension) == (tuple(shapes), 2, length)
    assert chain.bonds == tuple(shape[-1] for shape in shapes[:-1])
    assert (dense.cores, dense.sites, dense.bonds) == (((2, 6),), (6,), ())
    assert MPSUpdate(torch.ones(6, 2), cores).chains[0].cores == ((6, 2),)


B, A = torch.ones(4, 2), torch.ones(2, 6)
BAD = {
    "integers": (lambda: check_matrix("update", torch.ones(2, 2, dtype=torch.int64)), TypeError, "update.*int64"),
    "complex": (
        lambda: check_matrix("update", torch.ones(2, 2) * 1j),
        TypeError,
        "float32 or float64, got torch.complex64",
    ),
    "float8": (lambda: check_matrix("update", torch.ones(2, 2).to(torch.float8_e4m3fn)), TypeError, "float8"),
    "an array": (lambda: check_matrix("update", np.ones((2, 2))), TypeError, "torch.Tensor, got ndarray"),
    "sparse": (lambda: check_matrix("update", torch.eye(2).to_sparse()), TypeError, "dense"),
    "meta": (lambda: check_matrix("update", torch.ones(2, 2, device="meta")), TypeError, "meta"),
    "a vector": (lambda: check_matrix("update", torch.ones(2)), ValueError, "expected a matrix"),
    "a batch": (lambda: check_matrix("update", torch.ones(2, 2, 2)), ValueError, "as a list"),
    "an empty side": (lambda: check_matrix("update", torch.ones(0, 3)), ValueError, "empty dimension"),
    "rank zero": (lambda: LoRAUpdate(torch.ones(4, 0), torch.ones(0, 6)), ValueError, "B: has an empty dimension"),
    "swapped": (lambda: LoRAUpdate(A, B), ValueError, "swapped"),
    "ranks": (lambda: LoRAUpdate(B, torch.ones(3, 6)), ValueError, r"\(4, 2\) and A is \(3, 6\)"),
    "scaling zero": (lambda: LoRAUpdate(B, A, 0.0), ValueError, "scaling"),
    "scaling NaN": (lambda: LoRAUpdate(B, A, float("nan")), ValueError, "scaling"),
    "scaling a word": (lambda: LoRAUpdate(B, A, "2"), TypeError, "scaling"),
    "no cores": (lambda: MPSUpdate(B, []), TypeError, "at least two MPS cores"),
    "one core": (lambda: MPSUpdate(B, [A]), TypeError, "at least two MPS cores"),
    "no rank": (lambda: MPSUpdate(B, [torch.ones(2, 3), torch.ones(3, 3)]), ValueError, "cores must be shaped"),
    "rank twice": (lambda: MPSUpdate(B, [torch.ones(2, 2, 3), torch.ones(3, 3, 2)]), ValueError, "must be shaped"),
    "bond": (lambda: MPSUpdate(B, [torch.ones(2, 3), torch.ones(4, 3, 2)]), ValueError, "A: bond 1 does not match"),
    "core type": (lambda: MPSUpdate(B, [torch.ones(2, 3), torch.ones(3, 3, 2).int()]), TypeError, r"A\[1\]"),
    "core dtypes": (
        lambda: MPSUpdate(B, [torch.ones(2, 3), torch.ones(3, 3, 2).half()]),
        TypeError,
        "cores must have one dtype",
    ),
    "core ranks": (lambda: MPSUpdate(B, [torch.ones(2, 3), torch.ones(3, 3, 5)]), ValueError, "do not match"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()


def test_factors_that_look_swapped_are_questioned():
    with pytest.warns(UserWarning, match="are B and A swapped"):
        LoRAUpdate(torch.ones(2, 64), torch.ones(64, 2))
