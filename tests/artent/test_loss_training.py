"""``EntanglementLoss`` as it is used: half precision, compiled models, several processes, attention, real steps."""

import copy
import subprocess
import sys

import peft
import pytest
import torch
from artent import EntanglementLoss, MPSConfig
from loss_models import BOTH, CASES, adapted, lora, touched
from mps_models import llama, shake
from torch import nn


@pytest.mark.parametrize("case", ["LoRA", "MPS", "two MPS", "full FT"])
def test_half_precision_and_autocast(case):
    """bfloat16 weights, the term inside autocast: the gradient of the same numbers in float64, to its rounding."""
    model, before = CASES[case][0]()
    half, before = shake(model).bfloat16(), before.bfloat16()
    precise = copy.deepcopy(half).double()
    exact = EntanglementLoss(precise, copy.deepcopy(before).double(), targets=BOTH)
    term = EntanglementLoss(half, before, targets=BOTH)
    with torch.autocast("cpu", torch.bfloat16):
        value = term()
    assert (value.dtype, exact().dtype) == (torch.float32, torch.float64)
    assert value.item() == pytest.approx(exact().item(), abs=1e-6)
    value.backward()
    for name, gradient in touched(precise, exact).items():
        found = half.get_parameter(name).grad
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), gradient, rtol=2**-7, atol=1e-6)


def test_beside_a_compiled_model_and_over_micro_batches():
    model, _ = adapted(lora())
    shake(model)
    x = torch.ones(3, 24, dtype=torch.float64)
    alone = touched(model, EntanglementLoss(model, targets=BOTH))
    task = touched(model, lambda: model(x).square().mean())
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    term = EntanglementLoss(compiled, targets=BOTH)
    for _ in range(2):
        (compiled(x).square().mean() + term()).backward()
    for name, gradient in alone.items():
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * (task[name] + gradient))


def train(model, term, weight, steps=20, **options):
    """(the first loss, the last) of a small run."""
    optimiser = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-2)
    ids, losses = torch.arange(4 * 16).reshape(4, 16) % 47, []
    for step in range(1, steps + 1):
        output = model(input_ids=ids, labels=ids, **options)
        term.weight = weight * min(1, step / 5)
        (output.loss + term(output)).backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(output.loss.item())
    output = model(input_ids=ids, labels=ids, **options)
    term(output)
    return torch.stack(list(term.values.values())).mean().item(), losses[0], output.loss.item()


TRAININGS = {
    "valley depth, LoRA": ("valley_depth", peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), 1, 0.3),
    "cut entropy, MPS": ("cut_entropy", MPSConfig(r=4, chi=4, target_modules=["q_proj", "v_proj"]), 1, 0.3),
    "attention entropy, LoRA": (
        "attention_entropy",
        peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj"], lora_alpha=32),
        10,
        1.6,
    ),
}


@pytest.mark.parametrize("case", TRAININGS)
def test_training_with_it_moves_what_it_is_on(case):
    on, config, weight, target = TRAININGS[case]
    options = {"output_attentions": True} if on == "attention_entropy" else {}

    def run(weight, target=None):
        torch.manual_seed(2)
        model = peft.get_peft_model(llama(attn_implementation="artent"), copy.deepcopy(config))
        value, first, last = train(model, EntanglementLoss(model, on=on, target=target), weight, **options)
        assert last < first  # it learns beside
        return value

    without, down, up, drawn = run(0), run(weight), run(-weight), run(3 * weight, target)
    assert down + 0.1 < without < up - 0.1
    assert abs(drawn - target) < 0.1 < abs(without - target)


IDS = torch.arange(1, 3 * 12 + 1).reshape(3, 12) % 47
REAL = torch.arange(12) < torch.tensor([[12], [9], [1]])


def attending(implementation, **options):
    """A model in float64 with logits of order one."""
    return llama(attn_implementation=implementation, initializer_range=0.3, **options).double()


def softmax64(logits, dim, dtype):
    """In the dtype of the logits, where eager attention asks for float32; rows that see nothing are uniform."""
    return torch.softmax(logits.clamp_min(-1e30), dim)


@pytest.mark.parametrize("target", [None, 1.1])
@pytest.mark.parametrize("side", ["left", "left, not told", "right", "no mask"])
def test_attention_entropy_is_that_of_the_rows_of_real_tokens(side, target, monkeypatch):
    mask = None if side == "no mask" else REAL if side == "right" else REAL.flip(-1)
    inputs = {"input_ids": IDS, "output_attentions": True}
    if mask is not None:
        inputs["attention_mask"] = mask.long()
    model, eager = attending("artent"), attending("eager")
    term = EntanglementLoss(model, on="attention_entropy", target=target, weight=-2)
    # Padding on the left sees no key, and shows without a mask.
    found = term(model(**inputs), None if "told" in side else inputs.get("attention_mask"))
    found.backward()
    monkeypatch.setattr(nn.functional, "softmax", softmax64)
    A = torch.stack(eager(**inputs).attentions)  # (layers, B, H, T, T)
    rows = -(A * A.clamp_min(1e-300).log()).sum(-1)
    real = torch.ones(3, 12) if mask is None else mask
    v = (rows * real[:, None]).sum((1, 3)) / real.sum()  # (layers, H)
    wanted = -2 * (v if target is None else (v - target).square()).mean()
    wanted.backward()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.stack([term.values[0], term.values[1]]), v.detach())
    for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=name)
    assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().max() > 1e-3


def test_no_real_row_is_no_attention():
    model = llama(attn_implementation="artent")
    nothing = EntanglementLoss(model, on="attention_entropy")(
        model(input_ids=IDS, output_attentions=True), torch.zeros(3, 12)
    )
    nothing.backward()
    assert (nothing.item(), nothing.dtype) == (0, torch.float32)
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_sharded_parameters_are_refused():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
        term = EntanglementLoss(model, targets=["0"])
        torch.distributed.fsdp.fully_shard(model)
        for make in (term, lambda: EntanglementLoss(model, targets=["0"])):
            with pytest.raises(ValueError, match=r"^0: its parameters are sharded.*DDP"):
                make()
    finally:
        torch.distributed.destroy_process_group()


DDP = """
import sys
import torch
from artent import EntanglementLoss
from torch import nn

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
wrapped = nn.parallel.DistributedDataParallel(model)
base = {name: 0.5 * p.detach() for name, p in model.named_parameters()}
term = EntanglementLoss(wrapped, base, targets=["0", "2"], on="cut_entropy", weight=3)
x = torch.arange(48.0, dtype=torch.float64).reshape(2, 4, 6).sin()[rank]
with wrapped.no_sync():  # two micro-batches
    (wrapped(x[:2]).square().mean() + term()).backward()
(wrapped(x[2:]).square().mean() + term()).backward()
torch.save((model.state_dict(), [p.grad for p in model.parameters()]), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_gradients_averaged_over_processes_are_those_of_one(tmp_path):
    started = [subprocess.Popen([sys.executable, "-c", DDP, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    (weights, found), (_, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    model.load_state_dict(weights)
    base = {name: 0.5 * p.detach() for name, p in model.named_parameters()}
    term = EntanglementLoss(model, base, targets=["0", "2"], on="cut_entropy", weight=3)
    x = torch.arange(48.0, dtype=torch.float64).reshape(8, 6).sin()
    (2 * model(x).square().mean() + 2 * term()).backward()
    for parameter, a, b in zip(model.parameters(), found, other, strict=True):
        torch.testing.assert_close(a, parameter.grad)
        assert torch.equal(a, b)
