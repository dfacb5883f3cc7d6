"""Training by others' code: gradient checkpointing, Trainer with resume and artent's callback, generation."""

import peft
import pytest
import torch
from artent import attach
from artent.records import read_records
from mps_models import TOKENS, adapted, layers, llama, mps, shake, trainable
from peft import PeftModel
from peft.utils.other import fsdp_auto_wrap_policy
from tiny_training import TEXTS, training_arguments
from transformers import LlamaForSequenceClassification, Trainer


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(use_reentrant):
    gradients = []
    for checkpointed in (False, True):
        model, tokens, _ = adapted("llama, all linear", torch.float64)
        model.add_adapter("other", mps(sites=3, chi=2, tensorize="both", carrier="last"))
        model.base_model.set_adapter(["default", "other"])
        shake(model.train(), 5)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-15)


def test_fsdp_shards_factors_with_the_layers_that_read_them():
    """What PEFT's policy wraps is gathered when it is called, and a factor never is: two processes failed on it."""
    model, _, _ = adapted("llama, all linear")
    policy = fsdp_auto_wrap_policy(model)
    wrapped = {name for name, m in model.named_modules() if policy(module=m, recurse=False, nonwrapped_numel=0)}
    assert {name.rsplit(".", 1)[-1] for name in wrapped} == {"0", "1"}  # the decoder's layers


def test_generation_is_that_of_the_merged_model():
    base = llama(use_cache=True)
    model = shake(peft.get_peft_model(base, mps(chi=2, task_type="CAUSAL_LM", target_modules="all-linear")), scale=0.5)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with model.disable_adapter():
        plain = model.generate(input_ids=TOKENS, **options)
    found = model.generate(input_ids=TOKENS, **options)
    assert not torch.equal(found, plain)
    assert torch.equal(model.merge_and_unload().generate(TOKENS, **options), found)


def trainer(folder, steps, **options):
    model = peft.get_peft_model(llama(), mps(chi=3, lora_dropout=0.1, task_type="CAUSAL_LM", modules_to_save=["norm"]))
    torch.manual_seed(4)
    for layer in layers(model).values():
        layer.reset_parameters("default")
    arguments = training_arguments(folder, **{"max_steps": steps, "save_steps": 2, "logging_steps": 1} | options)
    return Trainer(model=model, args=arguments, train_dataset=TEXTS)


@pytest.mark.parametrize("options", [{}, {"bf16": True, "gradient_checkpointing": True}], ids=["float32", "mixed"])
def test_a_resumed_training_ends_where_an_unbroken_one_does(options, tmp_path):
    whole = trainer(tmp_path / "whole", 4, lr_scheduler_type="constant", **options)
    initial = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    whole.train()
    after = dict(whole.model.named_parameters())
    moved = {name for name, p in after.items() if not torch.equal(p, initial[name])}
    assert moved == trainable(whole.model)
    names = {path.name for path in (tmp_path / "whole/checkpoint-2").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt"} <= names
    assert "model.safetensors" not in names
    resumed = trainer(tmp_path / "resumed", 4, lr_scheduler_type="constant", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert resumed.state.global_step == 4
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, after[name]), name
    loaded = dict(PeftModel.from_pretrained(llama(), tmp_path / "whole/checkpoint-4").named_parameters())
    assert all(torch.equal(loaded[name], parameter) for name, parameter in after.items())


def test_the_callback_measures_what_trains(tmp_path):
    watched = trainer(tmp_path, 4, save_strategy="no")
    attach(watched, every=2, out=tmp_path / "out.jsonl")
    watched.train()
    profiles = [record for record in read_records(tmp_path / "out.jsonl") if record["kind"] == "profile"]
    assert {record["step"] for record in profiles} >= {2, 4}
    assert {record["module"] for record in profiles} == set(layers(watched.model))


def test_a_classifier_trains_its_head_along_and_saves_it(tmp_path):
    def build():
        return llama(LlamaForSequenceClassification, pad_token_id=0, num_labels=3)

    model = peft.get_peft_model(build(), mps(chi=2, task_type="SEQ_CLS"))
    shake(model)
    assert {name.split(".")[2] for name in trainable(model)} == {"model", "score"}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build(), tmp_path)
    assert torch.equal(again.eval()(TOKENS).logits, model.eval()(TOKENS).logits)
