"""What a recorder does with a budget: later, then coarser, and told."""

import math

import pytest
import torch
from artent import EntanglementRecorder, attention_entanglement
from artent.attention import AttentionEntanglement
from artent.attention.plan import make_plan
from artent.distributed import ALONE
from artent.records import read_records
from artent.training import external, internal
from artent.training.budget import Budget
from artent.training.external import External
from artent.training.internal import Internal
from test_recorder import PROBE, build


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def charged(recorder, monkeypatch, share, every, profiles=None, attention=None):
    """The recorder by a clock on which its parts take what ``profiles(options)`` and ``attention(options)`` say."""
    clock = Clock()
    recorder.budget = Budget(share, every, clock)

    def charging(function, cost):
        def charged(*arguments, **options):
            clock.now += cost(options)
            return function(*arguments, **options)

        return charged

    if profiles:
        monkeypatch.setattr(internal, "measure", charging(internal.measure, profiles))
    if attention:
        monkeypatch.setattr(external, "attention_entanglement", charging(attention_entanglement, attention))
    return clock


def measured(recorder, clock, steps):
    """{step: records} of steps that take a second each, where there are some."""
    found = {}
    for step in range(steps + 1):
        clock.now += bool(step)
        if records := recorder.step(step):
            found[step] = records
    return found


def test_attention_is_measured_later_then_on_its_longest_prefix(monkeypatch, tmp_path):
    file = tmp_path / "results.jsonl"
    model = build("full-ft")
    recorder = EntanglementRecorder(model, internal=False, probe=PROBE, lengths=(8, 16, 24), every=5, out=file)
    clock = charged(recorder, monkeypatch, 0.1, 5, attention=lambda o: 1.0 if o["lengths"] == (24,) else 8.0)
    with pytest.warns(UserWarning, match=r"takes 8 s.*budget of 0\.1.*attention with lengths=\(24,\)") as warned:
        found = measured(recorder, clock, 250)
    # The second has to wait for (8 + 8) / 0.1 s. It is the first to be judged: 80 s for 8 s is beyond five times 5
    # steps. The third has the prefix alone, but waits for what the second cost: (16 + 8) / 0.1 s. It costs 1 s, and
    # what comes then is due every 5 steps, paid for since (17 + 1) / 0.1 s.
    assert list(found) == [0, 160, 240, 245, 250]
    assert len(warned) == 1
    records = read_records(file)
    assert [record.get("lowered") for record in records] == [None, None, *[{"lengths": [24]}] * 3]
    assert [record["lengths"] for record in records] == [[8, 16, 24]] * 2 + [[24]] * 3
    assert [record["seconds"] for record in records] == [8.0, 8.0, 1.0, 1.0, 1.0]
    assert recorder.summary["share"] == 19 / 250
    assert records[-1]["s_ext"][0] == records[0]["s_ext"][-1]
    recorder.close()


def test_dense_updates_are_measured_later_then_to_an_error(monkeypatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(704, 704, bias=False))
    base = {"0.weight": model[0].weight.detach().clone()}
    decay = torch.exp(-torch.arange(704.0) / 3)[:, None]
    with torch.no_grad():
        model[0].weight += torch.linalg.qr(torch.randn(704, 704))[0] @ (decay * torch.randn(704, 704))
    recorder = EntanglementRecorder(model, base, targets=["0"], every=1)
    clock = charged(recorder, monkeypatch, 0.5, 1, profiles=lambda options: 1.0 if "max_error" in options else 30.0)
    with pytest.warns(UserWarning, match=r"profiles with max_error=0\.0655"):
        found = measured(recorder, clock, 181)
    assert list(found) == [0, 120, 180, 181]  # (30 + 30) / 0.5 s, (60 + 30) / 0.5 s, and the last one cost 1 s only
    exact = found[0][0]
    assert "lowered" not in exact
    assert exact["estimator"] == "exact"
    found = found[181][0]
    assert found["lowered"] == {"max_error": pytest.approx(0.01 * math.log(704))}
    assert found["estimator"] == "randomized"
    p = torch.linalg.svdvals((model[0].weight.detach() - base["0.weight"]).double()).square()
    entropy = torch.special.entr(p / p.sum()).sum().item()
    cut = len(found["sites"][0]) - 1
    assert found["lower"][cut] <= entropy <= found["upper"][cut]
    assert all(
        (high - low) / 2 <= 0.01 * math.log(704) for low, high in zip(found["lower"], found["upper"], strict=True)
    )


LADDERS = {  # lengths, options: what is lowered one after the other
    "long": ((128, 1024), {}, [{"lengths": (1024,)}, {"method": "streamed"}, {"rank": 16}, {"rank": 8}]),
    "short": ((64, 512), {}, [{"lengths": (512,)}]),
    "streamed": ((2048,), {}, [{"rank": 16}, {"rank": 8}]),
    "exact by choice": ((128, 1024), {"method": "exact"}, [{"lengths": (1024,)}]),
    "rank by choice": ((1024,), {"rank": 24}, [{"method": "streamed"}]),
}


@pytest.mark.parametrize("case", LADDERS)
def test_attention_gets_cheaper_step_by_step_and_what_was_chosen_stays(case, monkeypatch):
    lengths, options, expected = LADDERS[case]
    part = External(None, lengths, options)

    def attention(model, probe, lengths, method="auto", **options):
        plan = make_plan((2048,), lengths, None, "raw", method, 32, 6, 0)
        nothing = torch.zeros(len(plan.lengths))
        return AttentionEntanglement(*[nothing] * 7, plan.lengths, plan.methods, (0,), (2048,), "raw")

    monkeypatch.setattr(external, "attention_entanglement", attention)
    found = []
    for _ in range(6):
        part.measure(None, ALONE)
        if (cheaper := part.coarser()) is None:
            break
        found.append(cheaper)
        part.lowered |= cheaper
    assert found == expected


_ERROR = 0.01 * math.log(700)
CHOSEN = {  # options: what is lowered one after the other
    "nothing": ({}, [{"max_error": _ERROR}, {"method": "hybrid"}]),
    "an order": ({"alpha": 2.0}, [{"max_error": _ERROR}]),
    "a unit": ({"log_base": 2}, [{"max_error": _ERROR / math.log(2)}, {"method": "hybrid"}]),
    "an error": ({"max_error": 0.5}, []),
    "a method": ({"method": "exact"}, []),
    "a rank": ({"method": "randomized", "rank": 8}, []),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_profiles_get_cheaper_unless_their_method_was_chosen(case):
    options, expected = CHOSEN[case]
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8, bias=False), "b": torch.nn.Linear(700, 2, bias=False)})
    base = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    part = Internal(base, None, options)
    part.measure(model, ALONE)
    assert part.coarser() is None  # too small to win anything
    part._smallest = 700  # as where there is a 700×700 update
    for cheaper in expected:
        assert part.coarser() == {k: v if k == "method" else pytest.approx(v) for k, v in cheaper.items()}
        part.lowered |= part.coarser()
        part.measure(model, ALONE)  # together they are options that can be asked for
        part._smallest = 700
    assert part.coarser() is None
