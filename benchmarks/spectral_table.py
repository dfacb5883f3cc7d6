"""Spectral entropy of attention: error, stated error and bounds against float64, cost in forwards, long contexts.

    OMP_NUM_THREADS=2 python benchmarks/spectral_table.py [--tokens 4096] [--seeds 2] [--train 150] [--json FILE]

The synthetic kinds are those of the tests; the trained heads are of a small LLaMA, trained here at a context of
``--tokens`` on text that ships with Python. Truth is an eigenvalue problem of T in float64 a head. A forward is
``scaled_dot_product_attention`` on the same query and key, timed in alternation. Ends with one head of 32768 tokens,
time and memory in a process of its own (Linux).
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import alternate, machine, ratio, seconds, write

import artent_ext
from artent_ext import reference

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ext"))
from spectral_samples import KINDS

D = 64
TARGETS = {"rms_percent": 1.0, "equivalents": 16, "within_stderr": (0.53, 0.83)}
LONG = 32768
HEAD = """
| attention | heads | S (nats) | rms error | within ± stderr | outside the bounds | forwards |
|---|--:|--:|--:|--:|--:|--:|"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=2, help="heads of each synthetic kind")
    parser.add_argument("--train", type=int, default=150, help="steps of training for the trained heads; 0: none")
    parser.add_argument("--json", help="write the rows here too")
    arguments = parser.parse_args()
    T = arguments.tokens
    setup = {**machine(), "isa": artent_ext.build_info()["isa"], "tokens": T, "targets": TARGETS}
    rows, cases = [], []
    print(HEAD, flush=True)
    for name, (query, key, scale) in heads(T, arguments.seeds, arguments.train):
        found = measured(query, key, scale)
        cases.append(found)
        rows.append({"attention": name, **summary([found]), "equivalents": equivalents(query, key, scale)})
        print(told(rows[-1]), flush=True)
    total = {"attention": "all", **summary(cases), "equivalents": max(row["equivalents"] for row in rows)}
    print(told(total))
    long = in_a_process(LONG)
    print(f"\n{LONG} tokens, one head, D = {D}: {long['seconds']:.1f} s, {long['MiB']:.0f} MiB beyond query and key; "
          f"S = {long['value']:.4f} ± {long['stderr']:.4f} in [{long['lower']:.4f}, {long['upper']:.4f}]")  # fmt: skip
    if arguments.json:
        write(arguments.json, {**setup, "rows": [*rows, total], "long": {"tokens": LONG, **long}})


def heads(T, seeds, steps):
    """(name, (query (1, H, T, D), key, scale)) of every kind."""
    for kind, build in KINDS.items():
        pairs = [build(T, D, torch.Generator().manual_seed(seed)) for seed in range(seeds)]
        query, key = (torch.stack(x)[None] for x in zip(*pairs, strict=True))
        yield kind, (query, key, D**-0.5)
    if steps:
        for layer, (query, key, scale) in enumerate(trained(T, steps)):
            yield f"trained, layer {layer}", (query, key, scale)


def trained(T, steps):
    """query, key (1, H, T, D) and scale of every layer of a small LLaMA on a held-out text."""
    from artent.study.config import ModelConfig
    from artent.study.data.corpora import english
    from artent.study.models import untrained
    from transformers.modeling_utils import AttentionInterface

    text = english(T, 0.05)
    model = untrained(ModelConfig(layers=3, width=256, heads=4, kv_heads=2), T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        block = text.train[int(torch.randint(len(text.train), (1,), generator=generator))]["input_ids"][None]
        model(input_ids=block, labels=block).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        optimizer.step()
        optimizer.zero_grad()
    seen = []

    def attention(module, query, key, value, mask, scaling=None, **_):
        seen.append((query, key.repeat_interleave(query.shape[1] // key.shape[1], 1), scaling))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None

    AttentionInterface.register("heads", attention)
    model.set_attn_implementation("heads")
    with torch.no_grad():
        model(input_ids=text.probe(1, T))
    return seen


def measured(query, key, scale):
    """(error, stderr, truth, outside the bounds?) of every head, (4, H) float64."""
    found = artent_ext.attention_spectral_entropy(query, key, is_causal=True, scale=scale)
    truth = torch.stack([entropy(q, k, scale) for q, k in zip(query[0], key[0], strict=True)])
    value, stderr, lower, upper = (x[0] for x in found[:4])
    outside = (truth < lower) | (truth > upper)
    return torch.stack([(value - truth).abs(), stderr, truth, outside.double()])


def entropy(query, key, scale):
    A = reference.attention_probabilities(query.double(), key.double(), diagonal=0, scale=scale)
    p = torch.linalg.eigvalsh(A @ A.mT).clamp_min(0)
    return torch.special.entr(p / p.sum()).sum()


def summary(cases):
    error, stderr, truth, outside = torch.cat(cases, -1)
    return {"heads": len(error), "entropy": truth.mean().item(),
            "rms_percent": 100 * (error / truth).square().mean().sqrt().item(),
            "within_stderr": (error <= stderr).double().mean().item(), "outside": int(outside.sum())}  # fmt: skip


def equivalents(query, key, scale):
    """The time of one head's entropy over that of one head's fused attention forward."""
    q, k = query[:, :1], key[:, :1]
    functions = {
        "ours": partial(artent_ext.attention_spectral_entropy, q, k, is_causal=True, scale=scale),
        "forward": partial(F.scaled_dot_product_attention, q, k, k, is_causal=True, scale=scale),
    }
    took = alternate(functions, 5, partial(seconds, least=0.1, rest=0.1))
    return ratio(took["ours"], took["forward"])


_IN_A_PROCESS = """
import json, pathlib, re, time, torch, artent_ext
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
T, D = {tokens}, {D}
g = torch.Generator().manual_seed(0)
query, key = (torch.randn(1, 1, T, D, generator=g) for _ in "qk")
artent_ext.attention_spectral_entropy(query[:, :, :1024], key[:, :, :1024], is_causal=True)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = peak()
start = time.perf_counter()
found = artent_ext.attention_spectral_entropy(query, key, is_causal=True)
took = time.perf_counter() - start
print(json.dumps({{"seconds": took, "MiB": peak() - before, **{{k: getattr(found, k).item() for k in
                  ("value", "stderr", "lower", "upper")}}}}))
"""


def in_a_process(tokens):
    code = _IN_A_PROCESS.format(tokens=tokens, D=D)
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def told(row):
    cells = [row["attention"], row["heads"], f"{row['entropy']:.3f}", f"{row['rms_percent']:.3f} %",
             f"{100 * row['within_stderr']:.0f} %", row["outside"], f"{row['equivalents']:.1f}"]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
