"""``artent attention``: the external entanglement of a model on a text, as a table, JSON and figures."""

import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from artent import theory
from artent.attention.measure import attention_entanglement
from artent.attention.table import growth_by_layer, lines
from artent.commands.options import device, drawing, records_in, something_else
from artent.records import RecordWriter
from artent_ext import attention_spectral_entropy
from artent_ext._version import __version__

_FEWEST = 16  # tokens: fewer say nothing


def run(options):
    """Measure and tell. ``options``: what ``artent.cli`` parsed. Raises ValueError for what can't be used."""
    plots = drawing(options)
    if options.out is not None and any(r.get("command") != "attention" for r in records_in(options.out)):
        raise something_else(options.out)
    where = device(options.device)
    text = read_text(options.text)
    from artent.attention.load import load_model

    terminal = sys.stderr.isatty()
    model, tokenizer = load_model(options.model, dtype=getattr(torch, options.dtype), device=where, quiet=not terminal)
    ids, read, limit = tokens(tokenizer, text, model, options.max_tokens)
    _check_lengths(options.lengths, ids.shape[1], limit)

    layers = model.config.get_text_config().num_hidden_layers
    start = time.perf_counter()
    with tqdm(total=len(options.layers or range(layers)), unit="layer", disable=not terminal, leave=False) as bar:
        result = attention_entanglement(
            model,
            ids,
            lengths=options.lengths,
            layers=options.layers,
            variant=options.variant,
            method=options.method,
            progress=lambda _: bar.update(),
        )
    record = {
        "kind": "attention",
        "command": "attention",
        "artent": __version__,
        "torch": torch.__version__,
        "model": options.model,
        "architecture": type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__,
        "text": options.text,
        "tokens_read": read,
        "dtype": options.dtype,
        "device": str(where),
        "seconds": time.perf_counter() - start,
        **result.to_dict(),
        "growth": growth_by_layer(result),
    }
    if options.json:
        print(json.dumps(record))
    else:
        _tell(record, result, limit)
    if options.out is not None:
        _write(Path(options.out), record, result, plots, told=not options.json)


def read_text(name):
    """The text of a utf-8 file, or of standard input for "-"."""
    where = "standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"--text: {where} can't be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--text: {where} is no utf-8 text (byte {error.start} is {data[error.start]:#04x})") from None
    if not text.strip():
        raise ValueError(f"--text: {where} is empty")
    return text


def tokens(tokenizer, text, model, max_tokens):
    """(ids (1, T), tokens of the whole text, what limits T or None)."""
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"]
    read = ids.shape[1]
    limits = {
        "max_position_embeddings": getattr(model.config.get_text_config(), "max_position_embeddings", None),
        "--max-tokens": max_tokens,
    }
    limit = min((name for name, most in limits.items() if most is not None), key=limits.get, default=None)
    if limit is not None and limits[limit] < read:
        ids = ids[:, : limits[limit]]
    else:
        limit = None
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if ids.numel() and int(ids.max()) >= vocabulary:
        raise ValueError(
            f"MODEL: its tokenizer gives token {int(ids.max())} and its embedding ends at {vocabulary - 1}: is the "
            "tokenizer another model's?"
        )
    return ids, read, limit


def _check_lengths(lengths, used, limit):
    short = f"the text has {used} tokens" if limit is None else f"{used} tokens are used ({limit})"
    if lengths is None and used < _FEWEST:
        raise ValueError(f"--text: {short}, too few to measure: {_FEWEST} are the least, or give --lengths")
    if lengths is not None and max(lengths) > used:
        raise ValueError(f"--lengths: {max(lengths)} asked for, and {short}")


def _tell(record, result, limit):
    layers, heads = len(result.layers), result.s_ext.shape[-1]
    used = result.tokens[0]
    print(f"{record['model']}: {layers} layers of {heads} heads measured, {record['dtype']} on {record['device']}")
    text = "standard input" if record["text"] == "-" else record["text"]
    print(f"{text}: {record['tokens_read']} tokens, " + (f"{used} used ({limit})" if limit else "all used"))
    for method, words in (("exact", "exact"), ("streamed", "streamed, with a standard error and bounds")):
        at = [str(length) for length, m in zip(result.lengths, result.methods) if m == method]
        if at:
            print(f"T = {', '.join(at)}: {words}")
    print()
    for line in lines(result, record["growth"]):
        print(line)
    if record["growth"]:
        print()
        print("c of S = c ln T + b over these lengths: 0 is an area law, 1 the volume law (docs/math.md §5).")


def _write(folder, record, result, plots, told):
    with RecordWriter(folder / "results.jsonl") as writer:
        writer.write(record)
    made = [folder / "results.jsonl"]
    if plots is not None:
        figures = folder / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        drawn = {"s-ext-heads": plots.attention_heads(result)}
        if len(result.lengths) > 1:
            nulls = {"uniform over the past": [uniform_entropy(T) for T in result.lengths]}
            drawn["s-ext-growth"] = plots.attention_growth(result, nulls=nulls)
        for name, ax in drawn.items():
            plots.save(ax, figures / f"{name}.png")
            made.append(figures / f"{name}.png")
    if told:
        print()
        for path in made:
            print(f"Written: {path}")


def uniform_entropy(T):
    """S_ext of uniform causal attention, exact up to a thousand tokens and estimated above."""
    if T <= 1024:
        return theory.causal_uniform(T)
    none = torch.zeros(1, T, 8)
    return attention_spectral_entropy(none, none, is_causal=True).value.item()
