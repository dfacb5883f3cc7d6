"""TRL's SFTTrainer, given an ``MPSConfig`` where it takes a ``LoraConfig``. TRL comes for this test alone."""

import pytest
import torch
from artent import MPSConfig
from mps_models import llama, trainable
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")

WORDS = ["[PAD]", "[EOS]", "[UNK]", *(f"w{i}" for i in range(45))]


def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]", model_max_length=32
    )


def trainer(folder, **options):
    texts = [{"text": " ".join(WORDS[3 + (7 * i + 3 * j) % 45] for j in range(12 + i))} for i in range(8)]
    arguments = trl.SFTConfig(
        str(folder),
        **{"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant"} | options,
        gradient_checkpointing=True,
        per_device_train_batch_size=2,
        max_length=16,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        seed=3,
    )
    torch.manual_seed(4)
    return trl.SFTTrainer(
        model=llama(),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer(),
        peft_config=MPSConfig(r=4, chi=3, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM"),
    )


def test_sft_trains_saves_resumes_and_merges(tmp_path):
    whole = trainer(tmp_path / "whole")
    initial = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    whole.train()
    after = dict(whole.model.named_parameters())
    assert {n for n, p in after.items() if not torch.equal(p, initial[n])} == trainable(whole.model)
    assert all("artent_mps_" in name for name in trainable(whole.model))
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert all(torch.equal(p, after[name]) for name, p in resumed.model.named_parameters())
    whole.save_model(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "saved")
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        wanted = whole.model.eval()(tokens).logits
        assert torch.equal(loaded.eval()(tokens).logits, wanted)
        merged = loaded.merge_and_unload()(tokens).logits
    torch.testing.assert_close(merged, wanted, rtol=1e-5, atol=1e-5)
