"""A tiny LLaMA as a LightningModule, and trainers that say little."""

import peft
import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import LlamaConfig, LlamaForCausalLM

PROBE = torch.arange(2 * 12).reshape(2, 12) % 31


class Lit(LightningModule):
    """Losses in ``losses``; dropout draws from the global generator."""

    def __init__(self, kind="full-ft"):
        super().__init__()
        torch.manual_seed(0)
        shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.1}
        self.model = LlamaForCausalLM(LlamaConfig(**shape, **heads))
        if kind == "lora":
            config = peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
            self.model = peft.get_peft_model(self.model, config)
        self.losses = []

    def training_step(self, batch, index):
        loss = self.model(input_ids=batch, labels=batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def fit(lit, folder, *callbacks, steps=6, resume=None, **options):
    """``lit`` after so many optimizer steps, on texts that are always the same."""
    texts = (torch.arange(40)[:, None] * 7 + torch.arange(10) * 3) % 31
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=folder, callbacks=list(callbacks), **quiet, **options
    )
    torch.manual_seed(1)
    trainer.fit(lit, torch.utils.data.DataLoader(texts, batch_size=2), ckpt_path=resume)
    return lit
