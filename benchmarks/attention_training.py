"""What row statistics cost a fine-tuning step of a small LLaMA, and whether its losses stay: sdpa against artent.

    OMP_NUM_THREADS=2 python benchmarks/attention_training.py [--rounds 9] [--tokens 512] [--json FILE] [--force]

Both train the same model from the same weights on the same batches; "artent" asks for the statistics of every layer in
every step (``output_attentions=True``) and records their means. A step is forward, backward and AdamW.
"""

import argparse
from functools import partial
from statistics import median

import artent  # noqa: F401 (registers the attention implementation)
import torch
from measure import alternate, machine, quiet_start, ratio, refusal, seconds, undisturbed, write
from transformers import LlamaConfig, LlamaForCausalLM

TARGET = 1.03
CHECKED_STEPS = 5


class Training:
    def __init__(self, implementation, tokens):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=tokens, attn_implementation=implementation,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batches = torch.randint(0, 8192, (CHECKED_STEPS, 2, tokens))
        self.with_statistics = implementation == "artent"
        self.taken, self.losses, self.recorded = 0, [], []

    def step(self):
        ids = self.batches[self.taken % CHECKED_STEPS]
        self.taken += 1
        out = self.model(input_ids=ids, labels=ids, output_attentions=self.with_statistics)
        if self.with_statistics:
            self.recorded.append(torch.stack([stats.entropy.detach().mean((0, 2)) for stats in out.attentions]))
        out.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(out.loss.item())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--json", help="write the row here too")
    parser.add_argument("--force", action="store_true", help="report on a busy machine too, marked as such")
    arguments = parser.parse_args()
    quiet_start(arguments.force)
    sdpa, ours = (Training(name, arguments.tokens) for name in ("sdpa", "artent"))
    for _ in range(CHECKED_STEPS):
        sdpa.step()
        ours.step()
    torch.testing.assert_close(ours.losses, sdpa.losses, rtol=1e-4, atol=0)
    measured = partial(alternate, {"sdpa": sdpa.step, "artent": ours.step}, arguments.rounds, burst)
    took, disturbed = undisturbed(measured, tries=1 if arguments.force else 10)
    if no := refusal(disturbed, "the steps", arguments.force):
        raise SystemExit(no["refused"])
    of_sdpa = 1 / ratio(took["sdpa"], took["artent"])
    row = {"tokens": arguments.tokens, "sdpa_s": median(took["sdpa"]), "artent_s": median(took["artent"]),
           "of_sdpa": of_sdpa, "target": TARGET, "met": of_sdpa <= TARGET, "disturbed": disturbed}  # fmt: skip
    print(f"A step of 2×{arguments.tokens} tokens: {row['sdpa_s']:.3f} s with sdpa, {row['artent_s']:.3f} s with "
          f"statistics of every layer: {of_sdpa:.3f} of it (target ≤ {TARGET}); losses equal to 1e-4")  # fmt: skip
    if arguments.json:
        write(arguments.json, {**machine(), "rounds": arguments.rounds, **row})


def burst(function):
    return seconds(function, least=0, rest=0.1)


if __name__ == "__main__":
    main()
