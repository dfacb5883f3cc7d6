"""What ``artent.attach`` takes of the training time: the quick study's fine-tuning with it and without, in alternation.

    OMP_NUM_THREADS=2 python benchmarks/callback_table.py [--steps 100] [--rounds 5] [--every 10,50] [--json FILE]
        [--force] [--tiny]

Full FT and LoRA r = 16 of the quick study: its model, texts, batches, Trainer and measurements (profiles of q and v,
attention on a text of half the context), from untrained weights, which cost the same. A run is ``trainer.train()``,
measurements before the first and after the last step included. In a round all runs have the same seed; the share is the
median over rounds of (with − without) / without. Every loss and the final weights of all runs of a round are compared,
bit for bit.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
from artent.records import read_records
from artent.study import finetune, models
from artent.study.config import named_config
from artent.study.data.corpora import source
from measure import machine, quiet_start, refusal, undisturbed, write

TARGETS = {10: 0.05, 50: 0.02}  # share of the training time that measuring every so many steps may take
METHODS = ("full-ft", "lora-r16")


def watch_losses(trainer):
    """A list that fills with the loss of every step, as the forward pass gives it: logs would round it."""
    values, compute = [], trainer.compute_loss

    def compute_loss(*args, **kwargs):
        loss = compute(*args, **kwargs)
        values.append((loss[0] if isinstance(loss, tuple) else loss).detach().clone())
        return loss

    trainer.compute_loss = compute_loss
    return values


def trained(config, method, text, seed, every, steps, folder):
    """One fine-tuning → (seconds, losses, final weights, seconds that its records tell)."""
    model = models.adapt(models.untrained(config.model, config.data.context), method, config.measure.targets, seed)
    trainer = finetune.make_trainer(
        model, text.train, config.training, steps=steps, learning_rate=method.learning_rate, seed=seed,
        label=f"{method.label}, {f'every {every}' if every else 'without'}", folder=folder,
    )  # fmt: skip
    losses, out = watch_losses(trainer), Path(folder) / f"{method.name}-{seed}-{every}.jsonl"
    out.unlink(missing_ok=True)
    if every:
        probe = text.probe(config.measure.texts, config.measure.length)
        finetune.watch(trainer, config.measure, probe, every=every, out=out)
    time.sleep(0.5)  # the threads of what ran before spin for a while
    start = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - start
    told = sum(record.get("seconds", 0) for record in read_records(out)) if every else 0.0
    return took, torch.stack(losses), [p.detach().clone() for p in model.parameters()], told


def rounds(config, method, text, arguments, folder, tick):
    """{every: seconds in each round}, {every: seconds told in the records}, and what was not the same."""
    took, told, differing = {0: []}, {}, []
    for number in range(arguments.rounds):
        tick()
        runs = {}
        for every in (0, *arguments.every):
            runs[every] = trained(config, method, text, number, every, arguments.steps, folder)
            took.setdefault(every, []).append(runs[every][0])
            told.setdefault(every, []).append(runs[every][3])
        _, losses, weights, _ = runs[0]
        for every in arguments.every:
            same = torch.equal(runs[every][1], losses)
            if not (same and all(map(torch.equal, runs[every][2], weights))):
                differing.append({"round": number, "every": every, "losses_differ": not same})
    tick()
    return took, told, differing


def measure(config, method, text, arguments, folder):
    trained(config, method, text, 0, arguments.every[0], 2 * arguments.every[0], folder)  # imports, allocations
    measurement = partial(rounds, config, method, text, arguments, folder)
    (took, told, differing), disturbed = undisturbed(measurement, tries=1 if arguments.force else 3)
    row = {"method": method.label, "steps": arguments.steps, "identical": not differing, "differing": differing}
    if no := refusal(disturbed, method.label, arguments.force):
        return {**row, **no}
    row |= {"without_s": median(took[0]), "disturbed": disturbed, "every": []}
    for every in arguments.every:
        share = median((ours - plain) / plain for ours, plain in zip(took[every], took[0], strict=True))
        target = TARGETS.get(every)
        row["every"].append({
            "every": every, "with_s": median(took[every]), "share": share, "target": target,
            "told_share": fmean(told[every]) / median(took[0]), "met": target is None or share <= target,
        })  # fmt: skip
    return row


def tell(row):
    same = "losses and weights the same, bit for bit" if row["identical"] else f"DIFFERENT: {row['differing']}"
    if "refused" in row:
        return f"{row['method']}: {same}. {row['refused']}"
    shares = (
        f"every {e['every']}: {e['share']:.1%}" + (f" (≤ {e['target']:.0%})" if e["target"] else "")
        + f", its records say {e['told_share']:.1%}" for e in row["every"]
    )  # fmt: skip
    return f"{row['method']}, {row['steps']} steps in {row['without_s']:.1f} s: {'; '.join(shares)}; {same}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", default="10,50", help="steps between measurements (%(default)s)")
    parser.add_argument("--json", help="write the table here too")
    parser.add_argument("--force", action="store_true", help="report on a busy machine too, marked as such")
    parser.add_argument("--tiny", action="store_true", help="the smoke study's model, to try the script out")
    arguments = parser.parse_args()
    arguments.every = tuple(map(int, arguments.every.split(",")))
    quiet_start(arguments.force)
    config = named_config("smoke" if arguments.tiny else "quick")
    text, rows = source(config.data.context, config.data.held_out), []
    with finetune.quiet(), tempfile.TemporaryDirectory() as folder:
        for method in config.methods:
            if method.name in METHODS or (arguments.tiny and method.kind != "mps"):
                row = measure(config, method, text, arguments, folder)
                rows.append(row)
                print(tell(row), flush=True)
    if arguments.json:
        write(arguments.json, {**machine(), "rounds": arguments.rounds, "rows": rows})
    if not all(row["identical"] for row in rows):
        raise SystemExit("a measured run differs from the one without")


if __name__ == "__main__":
    main()
