"""``artent.LightningCallback``: the recorder as a callback of Lightning's Trainer."""

from artent.distributed import processes
from artent.training.base import check_keep
from artent.training.recorder import EntanglementRecorder, check_options

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError("artent.LightningCallback needs lightning: `pip install artent[lightning]`") from error


class LightningCallback(Callback):
    """Measures entanglement while Lightning trains: at step 0, every ``every`` optimizer steps, and at the last step::

        Trainer(callbacks=[artent.LightningCallback(every=50, module="model", probe=batch, out="results.jsonl")])

    Means over modules, layers and heads go to all loggers of the trainer, at the step that they belong to:
    ``artent/cut_entropy``, ``artent/valley_depth``, ``artent/effective_rank``, ``artent/s_ext``, and what they cost,
    ``artent/seconds`` and ``artent/share``, as ``artent.attach`` tells. They are among the callback metrics too, for
    ``ModelCheckpoint`` and the like, until the next measurement. The losses are those of a run without.

    An update of full FT is the difference from the weights at the start of ``fit()``. They are written to
    ``artent_base.safetensors`` in the trainer's ``default_root_dir``, and a fit that resumes from a checkpoint reads
    them from there. Under DDP, and where parameters are sharded by ``fully_shard`` (ModelParallelStrategy), all
    processes share the work; the first one logs and writes.

    Args:
        every: optimizer steps (``trainer.global_step``) between measurements.
        probe: the batch that attention is measured on, token ids (batch, T) or a mapping; None: updates only.
        out: a path that records are appended to.
        module: the name of the module to measure in the LightningModule, such as "model"; None: all of it. Attention is
            measured on a transformers model.
        keep_base: where the first weights of full FT are, while it runs: "memory" or "disk", as for ``artent.attach``.
        options: further arguments of ``EntanglementRecorder`` (base, targets, lengths, attention, profile, budget, …).

    Attributes:
        recorder: once training has begun.

    Raises:
        ValueError: ``keep_base`` is neither; when training begins: what ``EntanglementRecorder`` raises, no such
            module, FSDPStrategy, a resumed full FT without the weights that it started from.
    """

    def __init__(self, every=50, probe=None, out=None, *, module=None, keep_base="memory", **options):
        check_keep(keep_base)
        check_options(options, every)
        self.recorder = None
        self._module, self._probe = module, probe
        self._options = {"every": every, "out": out, "keep_base": keep_base, **options}
        self._seen = self._measured = 0  # optimizer steps

    def on_train_start(self, trainer, pl_module):
        if type(trainer.strategy).__name__ == "FSDPStrategy":
            raise ValueError(
                "artent.LightningCallback: FSDPStrategy (FSDP's first version) flattens the parameters, and no matrix "
                "is left to read. Use ModelParallelStrategy with torch.distributed.fsdp.fully_shard"
            )
        step = self._seen = trainer.global_step
        self.recorder = EntanglementRecorder.of_run(
            _part(pl_module, self._module),
            trainer.default_root_dir,
            step,
            probe=processes().broadcast(self._probe),  # of one batch, whatever each process drew
            **self._options,
        )
        self._measured = None
        if not step:
            self._measure(trainer, step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        before, self._seen = self._seen, trainer.global_step
        # none while gradients accumulate, several at once where there are several optimizers
        due = [step for step in range(before + 1, self._seen + 1) if self.recorder.due(step)]
        if due:
            values = self._measure(trainer, self._seen)
            pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False, rank_zero_only=True)

    def on_train_end(self, trainer, pl_module):
        if self._measured != trainer.global_step:
            self._measure(trainer, trainer.global_step)
        self.recorder.close()

    def on_exception(self, trainer, pl_module, exception):
        if self.recorder is not None:
            self.recorder.close()

    def _measure(self, trainer, step):
        """What was logged: nothing but on the first process."""
        self.recorder.measure(step)
        self._measured = step
        values = {f"artent/{name}": value for name, value in self.recorder.summary.items()}
        if values:  # Lightning's own log would keep them for its next round of logging, at another step
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)
                logger.save()
        return values


def _part(pl_module, name):
    if name is None:
        return pl_module
    try:
        return pl_module.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(child for child, _ in pl_module.named_children())
        raise ValueError(f"module={name!r}: the LightningModule has no such module; it has {children}") from error
