"""A causal language model and its tokenizer, from a folder or the hub, with artent's attention; adapters on their base.

Raises ValueError in one sentence where transformers would tell a page.
"""

import json
import warnings
from contextlib import contextmanager
from pathlib import Path

import artent  # noqa: F401  (registers attn_implementation="artent")

try:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging
    from transformers.utils.peft_utils import find_adapter_config_file
except ImportError as error:
    raise ImportError(f"a model is loaded by transformers ({error}): pip install 'artent[transformers]'") from error


def load_model(name, *, dtype, device, quiet=False):
    """(model, tokenizer) of a folder or hub name, in eval mode. Code from the hub isn't run, nothing is unpickled.

    Raises ValueError: there's no such folder or model, it is no causal language model, an adapter's base is not
    found, weights or tokenizer are missing; ImportError where an adapter needs peft.
    """
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    if not folder.is_dir() and (folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"MODEL {name!r}: there is no such folder")
    with _hushed(quiet):
        adapter = _adapter(folder if folder.is_dir() else None, name)
        if adapter is None:
            return _causal_lm(source, dtype).to(device).eval(), _tokenizer(source)
        base = _base(name, adapter)
        try:
            import peft
        except ImportError as error:
            raise ImportError(f"MODEL {name!r} is an adapter: pip install 'artent[peft]'") from error
        model = _causal_lm(base, dtype, f"MODEL {name!r} is an adapter of {base!r}, which")
        with _told(f"MODEL {name!r}: its adapter weights can't be loaded onto {base!r}"):
            model = peft.PeftModel.from_pretrained(model, source)
        own = folder.is_dir() and any(folder.glob("tokenizer*"))
        return model.to(device).eval(), _tokenizer(source if own else base)


def _adapter(folder, name):
    """What adapter_config.json says, or None where there's no such file, or a whole model beside it."""
    if folder is not None:
        file = folder / "adapter_config.json"
        return json.loads(file.read_text()) if file.is_file() and not (folder / "config.json").is_file() else None
    with _told(f"MODEL {name!r} is neither a folder here nor found on the hub"):
        file = find_adapter_config_file(name)
    return None if file is None else json.loads(Path(file).read_text())


def _base(name, adapter):
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"MODEL {name!r}: its adapter_config.json names no base_model_name_or_path")
    local = Path(base).expanduser()
    if not local.is_dir() and (local.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1):
        raise ValueError(
            f"MODEL {name!r} is an adapter of {base!r}, which isn't there; correct base_model_name_or_path in "
            "adapter_config.json, or run from the folder that it is relative to"
        )
    return str(local) if local.is_dir() else base


def _causal_lm(source, dtype, subject=None):
    subject = subject or f"MODEL {source!r}"
    with _told(f"{subject} can't be read"):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{subject} is no causal language model: its config.json says {config.model_type!r}")
    with _told(f"{subject} can't be loaded"):
        return transformers.AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            attn_implementation="artent",
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
        )


def _tokenizer(source):
    with _told(f"MODEL {source!r} has no tokenizer that can be loaded"):
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)


@contextmanager
def _told(what):
    """Errors of transformers and peft as a ValueError that says what failed, and the first line of why."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"{what} ({why[0].rstrip(' .:')})") from error


@contextmanager
def _hushed(quiet):
    """Without the libraries' progress bars and reports; settings are put back."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if quiet:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of one library about the other
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
