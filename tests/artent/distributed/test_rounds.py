"""How pending updates are shared out, and what one process does without others."""

import pytest
import torch
from artent import LoRAUpdate, MPSUpdate
from artent.distributed import ALONE, Processes, launched, processes, whole
from artent.reading.pending import PendingUpdate
from artent.rounds import _COST, ELEMENTS, lasting, rounds


def pending(*shapes):
    return [PendingUpdate(str(i), shape[:2], (*shape, None)[2], lambda whole: None) for i, shape in enumerate(shapes)]


def numbers(one):
    (m, n), rank = one.shape, one.rank
    return rank * (m + n) if rank else m * n


LLAMA = [(128256, 2048), *[(2048, 2048), (512, 2048), (512, 2048), (8192, 2048), (2048, 8192)] * 16]
CASES = {
    "LLaMA 1B": LLAMA,
    "LoRA": [(2048, 2048, 16), (512, 2048, 16)] * 16,
    "one": [(64, 64)],
    "small": [(8, 8 + i) for i in range(50)],
    "none": [],
}


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("case", CASES)
def test_every_update_has_one_turn_with_its_owner(case, size):
    updates = pending(*CASES[case])
    owners = Processes(0, size).owners(updates)
    plan = list(rounds(updates, owners, size))
    turns = [(rank, i) for lots in plan for rank, lot in enumerate(lots) for i in lot]
    assert sorted(turns, key=lambda turn: turn[1]) == [(owner, i) for i, owner in enumerate(owners)]
    loads = [sum(update.cost for update, owner in zip(updates, owners) if owner == rank) for rank in range(size)]
    costliest = max((update.cost for update in updates), default=0)
    assert max(loads) - min(loads) <= costliest  # the most that one module can make
    for lots in plan:
        assert len(lots) == size
        assert any(lots)
        firsts = [updates[lot[0]] for lot in lots if lot]
        for lot in lots:
            costs = [updates[i].cost for i in lot]
            assert costs == sorted(costs, reverse=True)
            if len(lot) > 1:  # else nothing could be done about it
                assert sum(costs) <= max([_COST, *(one.cost for one in firsts)]) * (1 + 1e-9)
                assert sum(numbers(updates[i]) for i in lot) <= max([ELEMENTS, *map(numbers, firsts)])


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("case", ["LLaMA 1B", "LoRA", "small"])
def test_waiting_for_each_other_costs_little(case, size):
    """Rounds end together, so what the longest lot of each takes is what all of them take."""
    updates = pending(*CASES[case])
    plan = rounds(updates, Processes(0, size).owners(updates), size)
    took = sum(max(sum(updates[i].cost for i in lot) for lot in lots) for lots in plan)
    best = max(sum(update.cost for update in updates) / size, max(update.cost for update in updates))
    assert took < 1.1 * best


UPDATES = {
    "dense": lambda W, V: W,
    "turned": lambda W, V: W.mT,
    "lora": lambda W, V: LoRAUpdate(W, V.mT, 2.0),
    "mps": lambda W, V: MPSUpdate(W[:, :2], [V[:3, :2], V[4:6].reshape(2, 2, 2)], 0.5),
}


@pytest.mark.parametrize("kind", UPDATES)
def test_what_is_read_outlasts_what_was_gathered(kind):
    """ZeRO-3 takes the memory of its parameters back at the end of ``whole``."""
    gathered = {i: torch.arange(24.0).reshape(6, 4) + i for i in range(2)}
    update = UPDATES[kind](*gathered.values())
    before = (update if kind in ("dense", "turned") else update.dense()).clone()
    kept = lasting(update, gathered)
    for tensor in gathered.values():
        tensor.fill_(torch.nan)
    assert type(kept) is type(update)
    assert torch.equal(kept if isinstance(kept, torch.Tensor) else kept.dense(), before)


def test_what_is_read_is_copied_only_where_it_has_to_be():
    W, other = torch.ones(3, 4), {0: torch.ones(3, 4)}
    assert lasting(W, other) is W
    assert lasting(W, {}) is W
    assert lasting(None, other) is None


def test_one_process_needs_no_others(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes() is ALONE
    with launched() as here:
        assert here is ALONE
    assert (ALONE.main, ALONE.collect("a"), ALONE.broadcast("b"), ALONE.agree()) == (True, ["a"], "b", None)
    with pytest.raises(KeyError, match="own"):  # as it is: nobody else needs to be told
        ALONE.agree(KeyError("own"))
    with whole([torch.nn.Parameter(torch.ones(2))]) as gathered:
        assert gathered == {}


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with (
        pytest.raises(RuntimeError, match="WORLD_SIZE is 2, but RANK not set: start several processes with torchrun"),
        launched(),
    ):
        pass
