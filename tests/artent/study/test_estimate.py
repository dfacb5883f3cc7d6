"""The dry run: parameters against published counts, memory against what a profiler sees, operations a counter's."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from artent.study import models
from artent.study.config import Method, ModelConfig, TrainingConfig, named_config, override
from artent.study.estimate import dry, dry_run
from artent.study.estimate.architecture import read_architecture
from artent.study.estimate.disk import disk_use
from artent.study.estimate.machine import Machine
from artent.study.estimate.memory import step_memory
from artent.study.estimate.trained import count
from artent.study.estimate.work import Worker
from artent.study.measuring import samples
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

TARGETS = ("q_proj", "v_proj")
PUBLISHED = {"meta-llama/Llama-3.2-1B": 1_235_814_400, "meta-llama/Llama-3.1-8B": 8_030_261_248}
METHODS = {
    "full": Method("full-ft", 1e-3),
    "targets": Method("full-ft", 1e-3, train="targets"),
    "lora": Method("lora", 1e-3, rank=4),
    "mps": Method("mps", 1e-3, rank=4, chi=4),
}


@pytest.fixture
def gpu(monkeypatch):
    """A machine of 80 GB a device, whatever this one is."""
    there = Machine("cuda", "a GPU", 80 * 10**9, 10**12, "bfloat16", 4e14, 2e13)
    monkeypatch.setattr(dry, "look", lambda *_: there)
    return there


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    architecture = read_architecture(ModelConfig(name))
    q, k = architecture.queries, architecture.keys
    h, layers = architecture.hidden, architecture.layers
    full = count(architecture, METHODS["full"], TARGETS, "bfloat16")
    assert full.parameters == full.trainable == PUBLISHED[name]
    assert full.weights == full.gradients == 4 * PUBLISHED[name]  # float32, of bfloat16 weights too
    lora = count(architecture, Method("lora", 1e-3, rank=16), TARGETS, "bfloat16")
    assert lora.trainable == layers * 16 * ((h + q) + (h + k))
    assert lora.gradients == 4 * lora.trainable  # PEFT's adapters are float32
    mps = count(architecture, Method("mps", 1e-3, rank=16, chi=8), TARGETS, "bfloat16")
    rows, columns = (32, 64) if h == 2048 else (64, 64)
    assert mps.trainable == layers * (2 * (16 * rows * 8 + 8 * columns) + 16 * (q + k))
    assert count(architecture, METHODS["targets"], TARGETS, "bfloat16").trainable == layers * h * (q + k)


def test_the_sum_that_decides_whether_a_model_fits(gpu):
    """Full FT of 8B: 4 bytes a weight, as many for its gradient, twice as many for AdamW."""
    config = override(named_config("llama-8b-tulu3"), ["methods=full-ft", "controls=[]", "sweep=[]"])
    whole, shared = (dry_run(config, devices).methods[0] for devices in (1, 8))
    size = 4 * PUBLISHED["meta-llama/Llama-3.1-8B"]
    assert (whole.memory.weights, whole.memory.gradients, whole.memory.optimizer) == (size, size, 2 * size)
    assert (shared.memory.weights, shared.memory.optimizer) == (size // 8, 2 * size // 8)
    assert whole.peak > 4 * size > shared.peak > size // 2
    told = dry_run(override(config, ["training.parallel=ddp", "training.batch=16"]), 2)
    assert not told.fits
    verdict = next(line for line in told.lines() if line.startswith("full FT:"))
    assert "DOES NOT FIT into the 74.5 GiB that are free on a GPU" in verdict
    assert "weights 29.9 GiB + gradients 29.9 + AdamW 59.8 + activations" in verdict
    assert "sizes as published" in told.lines()[1]


def test_an_estimate_is_plain_values_and_lines(gpu):
    config = named_config("smoke")
    found = dry_run(config)
    back = json.loads(json.dumps(found.to_dict()))
    assert back["fits"] is True
    assert [m["name"] for m in back["methods"]] == ["full-ft", "lora-r2", "mps-r2", "lora-10x"]
    assert found.parameters == sum(p.numel() for p in models.untrained(config.model, config.data.context).parameters())
    fewer = dry_run(override(config, ["seeds=0", "sweep=[]", "controls=[]"]))
    assert fewer.seconds["sweep"] == fewer.seconds["controls"] == 0 < found.seconds["sweep"]
    assert fewer.seconds["methods"] < found.seconds["methods"]
    assert all(len(line) < 200 for line in found.lines())


SMALL = {"layers": 4, "width": 64, "heads": 8, "kv_heads": 4, "mlp_width": 128}
WIDE = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 4, "mlp_width": 352}
FEW_KEYS = {"layers": 5, "width": 64, "heads": 4, "kv_heads": 1, "mlp_width": 192}
BATCH, CONTEXT = 2, 64
AUTOCAST, CHECKPOINTS = {"bf16": True}, {"checkpointing": True}
STEPS = [
    (SMALL, "full", "float32", {}),
    (SMALL, "lora", "bfloat16", {}),
    (SMALL, "mps", "float32", AUTOCAST),
    (SMALL, "targets", "float32", CHECKPOINTS),
    (WIDE, "full", "float32", AUTOCAST | CHECKPOINTS),
    (WIDE, "lora", "float32", CHECKPOINTS),
    (WIDE, "mps", "bfloat16", {}),
    (WIDE, "targets", "float32", AUTOCAST),
    (FEW_KEYS, "full", "bfloat16", CHECKPOINTS),
    (FEW_KEYS, "lora", "float32", AUTOCAST),
    (FEW_KEYS, "lora", "bfloat16", AUTOCAST | CHECKPOINTS),
]


@pytest.mark.parametrize(("sizes", "kind", "dtype", "how"), STEPS)
def test_memory_of_a_step_is_what_a_profiler_counts(sizes, kind, dtype, how):
    """Within 12 % of the bytes that the allocator gave out, whatever the shape, the method and the dtype."""
    config, training = ModelConfig(dtype=dtype, **sizes), TrainingConfig(batch=BATCH, **how)
    architecture, method = read_architecture(config, CONTEXT), METHODS[kind]
    one = count(architecture, method, TARGETS, dtype)
    told = step_memory(architecture, one.model, method, training, dtype, context=CONTEXT, targets=TARGETS)
    beyond = told.peak - told.weights - told.optimizer
    assert beyond == pytest.approx(profiled_peak(config, training, method, CONTEXT), rel=0.12)


def prepared(config, training, method, context):
    model = models.adapt(models.untrained(config, context), method, TARGETS, 0)
    if training.checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if method.kind != "full-ft":
            model.enable_input_require_grads()
    return model.train()


def profiled_peak(config, training, method, context):
    """Bytes that the CPU's allocator gave out at most during a step, beyond what it held before."""
    model = prepared(config, training, method, context)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    ids = torch.randint(0, 256, (training.batch, context), generator=torch.Generator().manual_seed(0))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=training.bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimizer's state
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_of_a_step_are_what_torch_counts(kind, checkpointing):
    config, training = named_config("quick"), TrainingConfig(batch=2, checkpointing=checkpointing)
    sizes = ModelConfig(layers=6, width=64, heads=4, kv_heads=2, mlp_width=160)
    config, method, T = replace(config, model=sizes, training=training), METHODS[kind], config.data.context
    architecture = read_architecture(config.model, T)
    # Eager attention computes what its mask hides, as attention under the mask of packed texts does.
    told = Worker(config, architecture, packed=True).step(count(architecture, method, TARGETS, "float32"))
    model = prepared(config.model, training, method, T)
    model.set_attn_implementation("eager")
    ids = torch.zeros(2, T, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # Fused attention makes its matrix once more in the backward pass; below the first adapters no gradient is needed.
    assert told == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_disk_is_what_is_written():
    config = named_config("smoke")
    architecture = read_architecture(config.model, config.data.context)
    trained = {m.name: count(architecture, m, TARGETS, "float32") for m, _ in config.runs}
    told = disk_use(config, architecture, trained)
    model = models.untrained(config.model, config.data.context)
    texts = torch.zeros(config.measure.texts, config.measure.length, dtype=torch.long)
    one = sum(tensor.nbytes for tensor in samples(model, texts, config.measure.rows).values())
    compared = 2 + 2 * (3 + 1) + 2 * 3  # untrained and base; three methods and lora-10x, and three controls, two seeds
    assert told["samples"] == compared * one
    adapters = [models.adapt(models.untrained(config.model, 32), m, TARGETS, 0) for m, _ in config.runs if m.rank]
    assert told["adapters"] == sum(4 * models.trainable(adapter)[0] for adapter in adapters)
    weights = sum(p.nbytes for p in model.parameters())
    assert told["base"] == weights
    assert told["checkpoints"] == 3 * (weights + 2 * weights)  # AdamW's, and a third is whole before the first goes
    without = replace(config, training=replace(config.training, save_every=None))
    assert disk_use(without, architecture, trained)["checkpoints"] == 0
