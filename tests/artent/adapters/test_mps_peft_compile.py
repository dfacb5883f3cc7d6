"""``torch.compile`` with no break in the graph, for any number of tokens, and what is compiled is what runs."""

import peft
import pytest
import torch
import torch._dynamo.testing
from mps_models import llama, mps, shake

CASES = {
    "three sites, both, r at the last": (
        torch.float64,
        None,
        mps(target_modules=["0"], sites=3, tensorize="both", carrier="last", chi=2),
    ),
    "autocast": (torch.float32, torch.bfloat16, mps(target_modules=["0"], chi=3)),
}


def counting(backend="aot_eager"):
    torch._dynamo.reset()
    return torch._dynamo.testing.CompileCounterWithBackend(backend)


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_adapter_is_the_same_for_any_number_of_tokens(case):
    dtype, autocast, config = CASES[case]
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(24, 36), torch.nn.Tanh(), torch.nn.Linear(36, 8)).to(dtype)
    model = shake(peft.get_peft_model(base, config))
    backend = counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for tokens in (5, 9, 17):
        x = torch.randn(tokens, 24, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            pairs = [f(x) for f in (model, compiled)]
        gradients = [torch.autograd.grad(y.double().square().sum(), [x, *trained]) for y in pairs]
        for found, wanted in zip((pairs[1], *gradients[1]), (pairs[0], *gradients[0])):
            torch.testing.assert_close(found, wanted)
    assert backend.frame_count == 2  # one for the first number of tokens, one for all others


def test_a_compiled_language_model_trains_and_follows_a_switch():
    model = shake(peft.get_peft_model(llama(num_hidden_layers=1), mps(chi=2)))
    model.add_adapter("other", mps(chi=2, target_modules=["o_proj"]))
    compiled = torch.compile(model.train(), fullgraph=True, backend=counting("eager"))
    tokens = torch.arange(24).reshape(2, 12)
    for name in ("default", "other"):
        model.set_adapter(name)
        loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.testing.assert_close(loss, model(input_ids=tokens, labels=tokens).loss)
        graded = {n.split(".")[-2] for n, p in model.named_parameters() if p.grad is not None}
        assert graded == {name}
        model.zero_grad()


def test_inductor_s_own_code_agrees():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = shake(peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(24, 36)), mps(target_modules=["0"], sites=3)))
    x = torch.randn(7, 24)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    outputs = [f(x) for f in (torch.compile(model, fullgraph=True), model)]
    gradients = [torch.autograd.grad(y.square().sum(), trained) for y in outputs]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])
