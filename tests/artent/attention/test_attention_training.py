"""Training with attn_implementation="artent": sdpa's losses, with the statistics of every step beside them."""

import peft
import pytest
import torch

STEPS = 20
# Two float32 models that differ in the order of sums alone: rounding of 1e-7, grown by twenty steps of AdamW.
LOSS_TOLERANCE = 1e-4


def train(model, ids, *, autocast=False, **options):
    """(losses, statistics of every step)"""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(5)  # of dropout
    losses, statistics = [], []
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(input_ids=ids, labels=ids, use_cache=False, **options)
        statistics.append(out.attentions)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    return losses, statistics


def lora(model):
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def reentrant(model):
    model.gradient_checkpointing_enable({"use_reentrant": True})
    return model


def compiled(model):
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager")


SETTINGS = {
    "plain": lambda model: model,
    "checkpointing": checkpointed,
    "reentrant checkpointing": reentrant,
    "torch.compile": compiled,
    "PEFT": lora,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_are_sdpas_while_every_step_is_recorded(tiny, ids, padding, setting):
    mask = padding(ids, "right")
    set_up = SETTINGS[setting]
    model = tiny("artent")
    sdpa, _ = train(lora(tiny("sdpa")) if setting == "PEFT" else tiny("sdpa"), ids, attention_mask=mask)
    ours, statistics = train(set_up(model), ids, attention_mask=mask, output_attentions=True)
    torch.testing.assert_close(ours, sdpa, rtol=LOSS_TOLERANCE, atol=0)
    assert ours[-1] < 0.9 * ours[0]
    entropies = torch.stack([layer.entropy for step in statistics for layer in step]).unflatten(0, (STEPS, 2))
    eager = lora(tiny("eager")) if setting == "PEFT" else tiny("eager")
    with torch.no_grad():
        matrices = eager(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    real = mask.bool()[:, None].expand(entropies.shape[2:])
    for layer, A in enumerate(matrices):  # of the first step; in the last the weights are others
        want = torch.special.entr(A.double()).sum(-1)
        torch.testing.assert_close(entropies[0, layer][real].double(), want[real], atol=1e-5, rtol=0)
    assert (entropies[-1] - entropies[0]).abs().max() > 1e-2


def test_without_statistics_losses_are_the_same_bits(tiny, ids, padding):
    mask = padding(ids, "right")
    assert train(tiny("artent"), ids, attention_mask=mask)[0] == train(tiny("sdpa"), ids, attention_mask=mask)[0]


def test_dropout_is_sdpas_and_the_statistics_are_of_attention_before_it(tiny, ids, padding):
    mask = padding(ids, "right")
    dropped = {"attention_dropout": 0.5}
    ours, statistics = train(tiny("artent", **dropped), ids, attention_mask=mask, output_attentions=True)
    assert ours == train(tiny("sdpa", **dropped), ids, attention_mask=mask)[0]
    with torch.no_grad():
        want = tiny("artent")(ids, attention_mask=mask, output_attentions=True).attentions[0]
    assert torch.equal(statistics[0][0].entropy, want.entropy)


def test_bfloat16_autocast(tiny, ids, padding):
    """As near to the float32 curve as transformers' own implementations are under autocast."""
    options = {"attention_mask": padding(ids, "right"), "autocast": True}
    exact = torch.tensor(train(tiny("sdpa"), ids, attention_mask=options["attention_mask"])[0])
    sdpa, eager = (torch.tensor(train(tiny(name), ids, **options)[0]) for name in ("sdpa", "eager"))
    ours, statistics = train(tiny("artent"), ids, output_attentions=True, **options)
    error, *allowed = (((curve - exact) / exact).norm() for curve in (torch.tensor(ours), sdpa, eager))
    assert error <= 2 * max(allowed)
    assert all(layer.entropy.dtype == torch.float32 for step in statistics for layer in step)


def test_entropy_as_a_loss_reaches_the_weights(tiny, ids):
    """The gradient of the mean row entropy, against the one through eager's matrices."""
    gradients = []
    for name in ("artent", "eager"):
        model = tiny(name)
        out = model(ids, output_attentions=True)
        rows = [
            layer.entropy if name == "artent" else -(layer * layer.clamp_min(1e-30).log()).sum(-1)
            for layer in out.attentions
        ]
        torch.stack(rows).mean().backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert gradients[0].norm() > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * gradients[1].abs().max().item())
