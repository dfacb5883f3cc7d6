"""``artent.attach``: the recorder as a callback of transformers' Trainer."""

import torch
from torch.nn.utils.rnn import pad_sequence

from artent.distributed import processes
from artent.training.base import check_keep, needs_base
from artent.training.recorder import EntanglementRecorder, check_options

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError("artent.attach needs transformers: `pip install artent[transformers]`") from error

# The default probe: an exact S_ext costs the cube of the tokens, and short texts say little.
_PROBE_AMONG, _PROBE_TEXTS, _PROBE_TOKENS = 64, 4, 512


def attach(trainer, every=50, internal=True, external=True, probe=None, out=None, keep_base="memory", **options):
    """Measure entanglement while ``trainer`` trains: at step 0, every ``every`` steps, and at the last step.

    Means over modules, layers and heads go to the trainer's log (``log_history``, TensorBoard, …) as
    ``artent/cut_entropy``, ``artent/valley_depth``, ``artent/effective_rank`` and ``artent/s_ext``, with what they
    cost: ``artent/seconds`` of the measurement, and ``artent/share``, the seconds spent measuring so far over those of
    the training. All values go to ``out``. The losses are those of a run without. ``budget=0.05`` keeps the share
    below 5 % (see ``EntanglementRecorder``); step 0 and the last step are measured all the same.

    An update of full FT is the difference from the weights at the start of ``train()``. They are written to
    ``artent_base.safetensors`` in the trainer's output folder, and a run that resumes from a checkpoint reads
    them from there. Adapters need no such file. After a resume ``out`` may hold a step twice: the later
    record counts.

    With several processes (DDP, FSDP's second version, DeepSpeed ZeRO) every one of them attaches. They share the work;
    the first one logs and writes.

    Args:
        trainer: a ``transformers.Trainer`` or a subclass such as TRL's.
        probe: the batch that attention is measured on; default: the 4 longest of the first 64 texts of the
            evaluation set, else of the training set, cut to 512 tokens. Longer ones are welcome: above 1024
            tokens S_ext is estimated, with its error, at some ten forward passes of attention a length.
        keep_base: where the first weights of full FT are while it runs: in "memory", a copy on the CPU; or on "disk",
            only in that file, from which each measurement reads them, a tensor at a time, as a resumed run does.
        options: further arguments of ``EntanglementRecorder`` (base, targets, lengths, attention, profile, budget,
            context).

    Returns:
        The callback, with its ``recorder`` once training has begun; ``trainer.remove_callback`` takes it off.

    Raises:
        TypeError: ``trainer`` is no Trainer.
        ValueError: ``keep_base`` is neither; a second attach that would keep the first weights; when training begins:
            what ``EntanglementRecorder`` raises, FSDP's first version, a resumed full FT without the weights that it
            started from.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"trainer must be a transformers Trainer, not {type(trainer).__name__}; "
            "in another loop use artent.EntanglementRecorder"
        )
    check_keep(keep_base)
    check_options(options, every)
    keeps = internal and needs_base(trainer.model, options.get("base"))
    if keeps and any(getattr(other, "keeps_base", False) for other in trainer.callback_handler.callbacks):
        raise ValueError(
            "trainer: artent is attached to it already, and the first weights of full fine-tuning are kept in one file "
            "of its output folder. Name all targets in one attach, pass base to one of the two, or take the other off "
            "with trainer.remove_callback"
        )
    if external and probe is None:
        probe = _default_probe(trainer)
    callback = EntanglementCallback(
        trainer, every=every, internal=internal, external=external, probe=probe, out=out, keep_base=keep_base, **options
    )
    callback.keeps_base = keeps
    trainer.add_callback(callback)
    return callback


class EntanglementCallback(TrainerCallback):
    """What ``attach`` adds to a trainer."""

    def __init__(self, trainer, *, probe=None, **options):
        self.trainer, self.recorder = trainer, None
        self._probe, self._options = probe, options
        self._measured = None  # the last step
        self.keeps_base = False  # in the trainer's output folder

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        probe = processes().broadcast(self._probe)  # of one batch, whatever each process drew
        self.recorder = EntanglementRecorder.of_run(
            model, args.output_dir, state.global_step, probe=probe, **self._options
        )
        if not state.global_step:
            self._measure(state, control)

    def on_step_end(self, args, state, control, **kwargs):
        if self.recorder is None:
            return
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or self.recorder.due(state.global_step):
            self._measure(state, control)

    def on_train_end(self, args, state, control, **kwargs):
        if self.recorder is None:
            return
        # Stopped by an evaluation after its step. A reloaded best model is not the model of this step.
        if self._measured != state.global_step and not args.load_best_model_at_end:
            self._measure(state, control)
        self.recorder.close()

    def _measure(self, state, control):
        self.recorder.measure(state.global_step)
        self._measured = state.global_step
        if not self.recorder.summary:  # nothing yet, or not the first process
            return
        logs = {f"artent/{name}": value for name, value in self.recorder.summary.items()}
        # The base class's log: a subclass such as TRL's empties its own running means into every log it is
        # asked for. A log also ticks off the one that is due at this step, the trainer's own.
        due = control.should_log
        Trainer.log(self.trainer, logs)
        control.should_log = due


def _default_probe(trainer):
    """Texts of the evaluation or training set, padded on the right."""
    dataset = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    if isinstance(dataset, dict) and dataset:
        dataset = next(iter(dataset.values()))
    try:
        texts = [_real_tokens(dataset[i]) for i in range(min(_PROBE_AMONG, len(dataset)))]
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"probe is missing, and none can be taken from the trainer's {type(dataset).__name__}: it is "
            "streamed, or its rows hold no input_ids. Pass probe, a batch of token ids (batch, T), or "
            "external=False"
        ) from error
    texts = sorted(filter(len, texts), key=len, reverse=True)[:_PROBE_TEXTS]
    if not texts:
        raise ValueError(
            "probe is missing, and none can be taken from the trainer's evaluation set: it is empty. Pass probe, a "
            "batch of token ids (batch, T), or external=False"
        )
    ids = pad_sequence(texts, batch_first=True)
    return {"input_ids": ids, "attention_mask": pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)}


def _real_tokens(row):
    ids = torch.as_tensor(row["input_ids"])
    if "attention_mask" in row:
        ids = ids[torch.as_tensor(row["attention_mask"]).bool()]
    return ids[:_PROBE_TOKENS]
