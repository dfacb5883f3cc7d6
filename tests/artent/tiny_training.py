"""Texts and arguments of the Trainers in the tests."""

from transformers import TrainingArguments

TEXTS = [{"input_ids": [(7 * i + 3 * j) % 31 for j in range(16)]} for i in range(12)]
TEXTS = [{**text, "labels": text["input_ids"]} for text in TEXTS]


def training_arguments(folder, **options):
    return TrainingArguments(
        str(folder),
        **{"learning_rate": 1e-2} | options,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=3,
    )
