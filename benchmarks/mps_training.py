"""What a fine-tuning step costs with MPS adapters and with PEFT's LoRA of the same rank, and what each keeps.

    OMP_NUM_THREADS=2 python benchmarks/mps_training.py [--rounds 9] [--tokens 512,4096] [--json FILE] [--force]

The projections W_Q and W_V of a Llama-3.2-1B layer (2048 → 2048 and 2048 → 512) beside frozen weights, in float32: a
step is forward, backward into the input as inside a model, and AdamW of the adapters. Before anything is timed both
hold the same ΔW, and their outputs and input gradients are compared. The floor is the same step without adapters.
What is kept (parameters, optimizer state, what autograd saves) is told for a bfloat16 base too, adapters in float32.
"""

import argparse
from functools import partial
from itertools import product
from statistics import median

import artent
import torch
from artent.adapters.mps.product import grouping
from measure import alternate, machine, quiet_start, ratio, refusal, seconds, undisturbed, write
from peft import LoraConfig, get_peft_model

D, WIDTHS, CHI = 2048, {"q_proj": 2048, "v_proj": 512}, 32
STEP_TARGET, MEMORY_TARGET = 1.05, 1.0


class Projections(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.ModuleDict({k: torch.nn.Linear(D, width, bias=False) for k, width in WIDTHS.items()})

    def forward(self, x):
        return [layer(x) for layer in self.proj.values()]


class Training:
    """One way of adapting the projections; ``step`` is timed."""

    def __init__(self, config, x):
        torch.manual_seed(0)
        self.x = x
        base = Projections().requires_grad_(False).to(x.dtype)
        self.above = [torch.randn(len(x), width).to(x.dtype) / width for width in WIDTHS.values()]
        self.model = get_peft_model(base, config) if config else base
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5) if config else None

    def step(self):
        self.x.grad = None
        torch.autograd.backward(self.model(self.x), self.above)
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def parameters(self):
        return sum(p.numel() for p in self.trained)

    def kept_bytes(self):
        """Parameters, optimizer state, and what autograd saves beyond the input and the parameters themselves."""
        known = {t.untyped_storage().data_ptr() for t in (self.x, *self.model.parameters())}
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.model(self.x)
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # which makes its state
        self.optimizer.zero_grad()
        state = sum(t.nbytes for s in self.optimizer.state.values() for t in s.values())
        return sum(saved.values()) + sum(p.nbytes for p in self.trained) + state


@torch.no_grad()
def write_the_same(mps, lora):
    """Random B in the MPS adapters, and LoRA's factors from theirs."""
    for layers in zip(mps.model.base_model.model.proj.values(), lora.model.base_model.model.proj.values()):
        update = layers[0].weight_update(["default"])
        update.B.normal_(std=0.01)
        B, A = update.factors()
        layers[1].lora_A["default"].weight.copy_(A)
        layers[1].lora_B["default"].weight.copy_(B)


def worst_difference(mps, lora):
    """Of outputs and input gradients, relative to the adapters' own share."""
    found = {}
    for rival in (mps, lora):
        rival.x.grad = None
        with rival.model.disable_adapter():
            base = rival.model(rival.x)
        outputs = rival.model(rival.x)
        torch.autograd.backward(outputs, rival.above)
        rival.optimizer.zero_grad()
        found[rival] = [*(out.detach() - b.detach() for out, b in zip(outputs, base)), rival.x.grad.clone()]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(*found.values()))


def measure(rank, tokens, rounds, force):
    torch.manual_seed(1)
    x = torch.randn(tokens, D, requires_grad=True)
    targets = list(WIDTHS)
    configs = {
        "lora": LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets),
        "mps": artent.MPSConfig(r=rank, lora_alpha=2 * rank, chi=CHI, target_modules=targets),
    }
    half = x.detach().bfloat16().requires_grad_()
    kept_half = {name: Training(config, half).kept_bytes() for name, config in configs.items()}
    lora, mps = (Training(config, x) for config in configs.values())
    write_the_same(mps, lora)
    difference = worst_difference(mps, lora)
    assert difference < 1e-4, f"outputs or gradients differ by {difference}"
    kept = {"lora": lora.kept_bytes(), "mps": mps.kept_bytes()}
    rivals = {"lora": lora.step, "mps": mps.step, "frozen": Training(None, x).step}
    took, disturbed = undisturbed(partial(alternate, rivals, rounds, burst), tries=1 if force else 10)
    if no := refusal(disturbed, f"r {rank}, {tokens} tokens", force):
        return {"rank": rank, "tokens": tokens, **no}
    shape = mps.model.base_model.model.proj["q_proj"].artent_mps_A["default"].shape
    of_lora = 1 / ratio(took["lora"], took["mps"])
    memory = kept["mps"] / kept["lora"]
    return {
        "rank": rank, "tokens": tokens, "chi": CHI, "sites": shape.sites,
        "blocks": [grouping(shape, tokens, backward) for backward in (False, True)],
        "parameters": {"lora": lora.parameters(), "mps": mps.parameters()},
        **{f"{name}_s": median(times) for name, times in took.items()},
        "of_lora": of_lora, "step_met": of_lora <= STEP_TARGET,
        "kept_bytes": kept, "memory_of_lora": memory, "memory_met": memory <= MEMORY_TARGET,
        "kept_bytes_bfloat16_base": kept_half, "memory_of_lora_bfloat16_base": kept_half["mps"] / kept_half["lora"],
        "difference": difference, "disturbed": disturbed,
    }  # fmt: skip


def told(row):
    over = f"{row['mps_s'] / row['frozen_s']:.2f} (LoRA {row['lora_s'] / row['frozen_s']:.2f})"
    counts = "{mps:,} of {lora:,}".format(**row["parameters"])
    kept = f"{row['memory_of_lora']:.3f} (≤ {MEMORY_TARGET}), {row['memory_of_lora_bfloat16_base']:.3f} in bfloat16"
    return f"{row['of_lora']:.3f} (≤ {STEP_TARGET})  {over}  {kept}  {counts}"


def burst(function):
    return seconds(function, least=0, rest=0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", default="512,1024,2048,4096")
    parser.add_argument("--json", help="write the table here too")
    parser.add_argument("--force", action="store_true", help="report on a busy machine too, marked as such")
    arguments = parser.parse_args()
    quiet_start(arguments.force)
    rows = []
    print("rank tokens  step/LoRA's  over the step without adapters  kept/LoRA's  parameters")
    for rank, tokens in product((64, 256), map(int, arguments.tokens.split(","))):
        row = measure(rank, tokens, arguments.rounds, arguments.force)
        rows.append(row)
        print(f"{rank:4} {tokens:6}  {row.get('refused') or told(row)}")
    if arguments.json:
        write(arguments.json, {**machine(), "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
