"""A client as people have it: TRL's SFTTrainer on chats, with LoRA or MPS, watched, and its TensorBoard read back."""

import copy
from math import exp

import pytest
import torch
from artent import EntanglementLoss, MPSConfig, attach
from artent.records import read_records
from mps_models import llama
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

WORDS = ["[PAD]", "[EOS]", "[UNK]", "<user>", "<assistant>", *(f"w{i}" for i in range(43))]
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<assistant> "
    "{% generation %}{{ message.content }} [EOS]{% endgeneration %}{% else %}<user> {{ message.content }}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
SCALARS = ("cut_entropy", "valley_depth", "effective_rank", "s_ext")
ADAPTERS = {
    "LoRA": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM"),
    "MPS": MPSConfig(r=4, chi=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM"),
}


def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=TEMPLATE, **special)


def chats(count, seed):
    def say(i, words):
        return " ".join(WORDS[5 + (7 * i + 3 * j + seed) % 43] for j in range(words))

    return datasets.Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": say(i, 3 + i)},
                    {"role": "assistant", "content": say(i + 1, 4)},
                    {"role": "user", "content": say(i + 2, 2)},
                    {"role": "assistant", "content": say(i + 3, 5)},
                ]
            }
            for i in range(count)
        ]
    )


def trainer(folder, kind, cls=trl.SFTTrainer):
    arguments = trl.SFTConfig(
        str(folder),
        max_steps=6,
        save_steps=2,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=3,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        assistant_only_loss=True,
        max_length=24,
        report_to="tensorboard",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=3,
    )
    torch.manual_seed(4)
    return cls(
        model=llama(),
        args=arguments,
        train_dataset=chats(8, 0),
        eval_dataset=chats(3, 5),
        processing_class=tokenizer(),
        peft_config=copy.deepcopy(ADAPTERS[kind]),
    )


def written(folder):
    """{tag: {step: value}} of the TensorBoard files below ``folder``."""
    scalars = {}
    for path in folder.glob("runs/*"):
        log = events.EventAccumulator(str(path)).Reload()
        for tag in log.Tags()["scalars"]:
            scalars.setdefault(tag, {}).update({event.step: event.value for event in log.Scalars(tag)})
    return scalars


def means(records):
    """{scalar: {step: value}}, the means of the entropies that were recorded, by their definitions."""
    found = {scalar: {} for scalar in SCALARS}
    for step in {record["step"] for record in records}:
        profiles = [r for r in records if r["step"] == step and r["kind"] == "profile"]
        cuts = [r["entropy"][len(r["sites"][0]) - 1] for r in profiles]
        if cuts:
            found["cut_entropy"][step] = sum(cuts) / len(cuts)
            found["valley_depth"][step] = sum(max(r["entropy"]) - c for r, c in zip(profiles, cuts)) / len(cuts)
            found["effective_rank"][step] = sum(map(exp, cuts)) / len(cuts)
        (attention,) = (r for r in records if r["step"] == step and r["kind"] == "attention")
        longest = torch.tensor(attention["s_ext"][attention["lengths"].index(max(attention["lengths"]))])
        found["s_ext"][step] = longest.nanmean().item()
    return found


def theirs(history):
    """What the trainer logs of itself, but for timings."""
    timing = ("runtime", "per_second", "flos")
    entries = [entry for entry in history if not any(key.startswith("artent/") for key in entry)]
    return [{k: v for k, v in entry.items() if not any(t in k for t in timing)} for entry in entries]


def measured(path):
    """{(step, module): what was measured}; the later record of two counts."""
    return {(r["step"], r.get("module")): r.get("entropy", r.get("s_ext")) for r in read_records(path)}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_watched_sft_run_is_the_same_run_and_tensorboard_has_what_was_measured(kind, tmp_path):
    plain = trainer(tmp_path / "plain", kind)
    plain.train()
    watched = trainer(tmp_path / "watched", kind)
    attach(watched, every=2, out=tmp_path / "results.jsonl")
    watched.train()

    assert theirs(watched.state.log_history) == theirs(plain.state.log_history)
    assert [entry["step"] for entry in watched.state.log_history if "loss" in entry] == [2, 4, 6]
    weights = zip(plain.model.parameters(), watched.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)

    scalars, records = written(tmp_path / "watched"), read_records(tmp_path / "results.jsonl")
    assert len([r for r in records if r["kind"] == "profile"]) == 3 * 4  # nothing is written at step 0
    for scalar, expected in means(records).items():
        assert set(expected) == ({0, 2, 4, 6} if scalar == "s_ext" else {2, 4, 6})
        assert scalars[f"train/artent/{scalar}"] == pytest.approx(expected, rel=1e-6)
    assert all(scalars["train/artent/seconds"][step] > 0 for step in (0, 2, 4, 6))
    assert scalars["train/loss"] == written(tmp_path / "plain")["train/loss"]
    assert set(scalars["eval/loss"]) == {3, 6}

    resumed = trainer(tmp_path / "resumed", kind)
    attach(resumed, every=2, out=tmp_path / "resumed.jsonl")
    resumed.train(resume_from_checkpoint=str(tmp_path / "watched/checkpoint-2"))
    whole = measured(tmp_path / "results.jsonl")
    assert measured(tmp_path / "resumed.jsonl") == {at: value for at, value in whole.items() if at[0] > 2}
    again = written(tmp_path / "resumed")["train/artent/cut_entropy"]
    assert again == {step: scalars["train/artent/cut_entropy"][step] for step in (4, 6)}


class Entangling(trl.SFTTrainer):
    """As a user adds a term to the loss of a trainer."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.term = EntanglementLoss(self.model, on="cut_entropy", weight=-1)

    def compute_loss(self, model, *args, **kwargs):
        loss = super().compute_loss(model, *args, **kwargs)
        return loss + self.term() if model.training else loss


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_term_in_the_loss_of_a_trainer(kind, tmp_path):
    entropies = {}
    for cls in (trl.SFTTrainer, Entangling):
        run = trainer(tmp_path / cls.__name__, kind, cls)
        attach(run, every=6, external=False)
        run.train()
        (entropies[cls],) = (e["artent/cut_entropy"] for e in run.state.log_history if "artent/cut_entropy" in e)
    assert entropies[Entangling] > entropies[trl.SFTTrainer] + 0.1
