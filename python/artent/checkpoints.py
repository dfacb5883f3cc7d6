"""What fine-tuning wrote: the weight updates of a model, and their entanglement profiles."""

import warnings
from pathlib import Path

import torch

from artent.measure import measure, read_whole
from artent.reading.adapter_files import folder_updates, is_factored, read_config, refuse_factors
from artent.reading.differences import differences
from artent.reading.live_adapters import adapted_layers, live_updates
from artent.reading.pending import PendingUpdate
from artent.reading.weights import read_weights, unwrap


def weight_updates(model_or_path, base=None, *, targets=None):
    """The updates that fine-tuning wrote, one matrix at a time.

    - A live model with PEFT layers gives its active adapters: ``LoRAUpdate`` factors (the parameters
      themselves, so a profile of them can be a loss term) for LoRA, rank and alpha patterns, rsLoRA and
      several adapters at once; ``MPSUpdate`` cores likewise for an MPS adapter (several at once: their
      ``LoRAUpdate``); a dense merged − base matrix for DoRA and every other method that can be merged, and
      for modules trained as a copy. ``base`` is needed only where the start changed the base weights
      (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA).
    - A folder of a LoRA or MPS adapter (``adapter_config.json`` with safetensors) gives factors likewise; of another
      method, merged − base as above, which needs ``base`` and PEFT but no model.
    - Any other model, state dict, ``.safetensors`` file or folder of them gives tuned − ``base``, dense, in
      float32 or better, for each 2-d floating-point weight; ``base`` is a model, a state dict or safetensors
      again. Tied weights come once.

    Names are those of the unwrapped model's modules (``model.layers.0.self_attn.q_proj``). An update of
    shape (m, n) is read outputs × inputs, as ``nn.Linear`` stores it (GPT-2's ``Conv1D`` is turned round
    where a live model tells); an embedding's is tokens × features.

    Args:
        targets: None for every adapted module or every weight that changed; a list of names or name endings,
            or a regular expression for the whole name, as in PEFT's ``target_modules``.

    Yields:
        (name, update): update a Tensor (m, n), an ``artent.LoRAUpdate`` or an ``artent.MPSUpdate``. A weight
        that did not change has no update and is left out; a ``UserWarning`` names such weights at the end
        where ``targets`` asked for them, or where nothing changed at all.

    Raises:
        ValueError: no ``base`` where one is needed, weights without a partner or of another shape, a target
            that matches nothing, layers whose update is not one matrix, pickled or missing files.
        TypeError: an argument of another kind.
    """
    unchanged, changed = [], 0
    for pending in pending_updates(model_or_path, base, targets=targets):
        update = read_whole(pending)
        if update is None:
            unchanged.append(pending.name)
        else:
            changed += 1
            yield pending.name, update
    _warn_of_unchanged(unchanged, asked=targets is not None or not changed)


def profile_model(model_or_path, base=None, *, targets=None, processes=None, **options):
    """{name: EntanglementProfile} of :func:`weight_updates`; ``options`` go to ``entanglement_profile``.

    Modules that did not change (LoRA before its first step) are left out, with the warning told there: at
    step 0 the answer is an empty dictionary. No gradients are recorded.

    With ``processes`` (``artent.distributed.processes()`` where torch.distributed runs), every one of which makes this
    call, the modules are shared out; the first process has all the profiles, the others an empty dictionary. Sharded
    weights (FSDP2, ZeRO-3) are always shared out, each gathered when its turn comes.
    """
    found = list(measure(pending_updates(model_or_path, base, targets=targets), processes=processes, **options))
    unchanged = [measured.name for measured in found if measured.profile is None]
    _warn_of_unchanged(unchanged, asked=targets is not None or len(unchanged) == len(found))
    return {measured.name: measured.profile for measured in found if measured.profile is not None}


def pending_updates(model_or_path, base=None, *, targets=None, device="cpu") -> list[PendingUpdate]:
    """The updates of :func:`weight_updates`, and of weights that may not have changed, by name and shape, unread.

    Files are read to ``device``; live weights are read where they are. Raises what :func:`weight_updates` raises, all
    that can be known without reading a tensor.
    """
    on_disk = isinstance(model_or_path, str | Path)
    if isinstance(model_or_path, torch.nn.Module) and (layers := adapted_layers(model := unwrap(model_or_path))):
        return live_updates(model, layers, _base(base, device), targets)
    if on_disk and (Path(model_or_path) / "adapter_config.json").is_file():
        if base is None or is_factored(read_config(model_or_path)):
            return folder_updates(model_or_path, _base(base, device), targets, device)
        from artent.reading.merged_adapters import merged_folder_updates

        return merged_folder_updates(model_or_path, _base(base, device), targets, device)
    tuned = read_weights(model_or_path, "model_or_path", device)
    if on_disk:
        refuse_factors(tuned, "model_or_path", model_or_path)
    if base is None:
        raise ValueError(
            "base is missing: the model has no PEFT layers, so its update is the difference from the weights "
            "that it started from. Pass base, a model, a state dict or safetensors"
        )
    return differences(tuned, _base(base, device), targets)


def _base(base, device):
    if base is None:
        return None
    weights = read_weights(base, "base", device)
    if isinstance(base, str | Path):
        refuse_factors(weights, "base", base)
    return weights


def _warn_of_unchanged(names, asked):
    if names and asked:
        warnings.warn(
            f"{len(names)} weights did not change and have no update: {', '.join(names[:4])}"
            f"{', …' * (len(names) > 4)}. Likely cause: training has not begun (LoRA's B starts at "
            "zero), they are frozen, or base is the tuned model itself",
            stacklevel=3,
        )
