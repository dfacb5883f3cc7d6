"""``artent ranks``: a rank for every module, what that saves, and the pattern that tells PEFT."""

import json
import re
import sys
from pathlib import Path

from tqdm import tqdm

from artent.commands.options import plain_warnings
from artent.commands.profile_results import whole
from artent.commands.profile_table import by_number, short_names, unchanged_lines
from artent.ranks import suggest_ranks

_BYTES = 2  # of a number in bfloat16


def run(options):
    """Measure, or read what was measured, and tell. ``options``: what ``artent.cli`` parsed.

    Raises ValueError and OSError for what can't be used.
    """
    out = None if options.out is None else _file(options.out)
    try:
        with plain_warnings("ranks"):
            suggestion = _suggested(options)
    except (ValueError, OSError) as error:  # which speaks of the function's arguments
        told = str(error).replace("model_or_path", "TUNED").replace("base is missing", "--base is missing")
        raise ValueError(re.sub("^source", "TUNED", told)) from error
    told = json.dumps(suggestion.to_dict())
    if out is not None:
        _write(out, told)
    if options.json:
        print(told)
        return
    for line in lines(suggestion):
        print(line)
    if out is not None:
        print(f"\nWritten: {out}")


def _suggested(options):
    """What the function suggests, behind a progress bar where somebody looks."""
    names = ("targets", "by", "target", "parameters", "multiple_of", "minimum", "maximum", "scaling")
    with tqdm(unit="module", disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(done, modules):
            bar.total = modules
            bar.update(done - bar.n)

        chosen = {name: getattr(options, name) for name in names}
        return suggest_ranks(options.tuned, options.base, progress=progress, **chosen)


def lines(suggestion):
    """The table, the savings, and the pattern as JSON."""
    names = sorted(suggestion.ranks, key=by_number)
    pattern, shown = short_names(names)
    rows = [("module", "now", "suggested", "mass kept")]
    for name in names:
        now, least = suggestion.nominal[name], "≥ " * (name in suggestion.bounded)
        rank = f"{suggestion.ranks[name]}{'*' * (name in suggestion.missed)}"
        rows.append((shown[name], "full" if now is None else str(now), rank, f"{least}{suggestion.kept[name]:.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    if pattern:
        yield f"Modules: {pattern}"
    for first, *rest in rows:
        yield "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:]))])
    if suggestion.missed:
        yield f"* held at --maximum, below the target ({len(suggestion.missed)} of {len(names)})"
    yield from unchanged_lines(suggestion.unchanged)
    yield ""
    now, then, saved = suggestion.parameters_before, suggestion.parameters, suggestion.saved
    yield (
        f"{then:,} parameters for {now:,}: {_share(saved, now)}. In bfloat16 {_size(then)} for {_size(now)}, "
        "in float32 twice that."
    )
    if None in suggestion.nominal.values():
        yield "full: the update is dense, m·n parameters; a rank r has r·(m + n)."
    yield _scaling(suggestion)
    yield ""
    yield "peft.LoraConfig (--json has target_modules too):"
    config = {key: value for key, value in suggestion.config().items() if key != "target_modules"}
    yield json.dumps(config, indent=2)


def _scaling(suggestion):
    if suggestion.use_rslora:
        return "lora_alpha: as it is now, since rsLoRA scales by α/√r (--scaling sets α/r instead)."
    ratios = {f"{alpha / suggestion.ranks[name]:g}" for name, alpha in suggestion.alphas.items()}
    if len(ratios) > 1:
        return "lora_alpha: α/r is what each module has now (--scaling sets one for all)."
    return f"lora_alpha: α/r is {ratios.pop()} (--scaling sets another)."


def _share(saved, now):
    return f"{saved / now:.1%} saved" if saved >= 0 else f"{-saved / now:.1%} more"


def _size(parameters):
    size = parameters * _BYTES / 2**10
    return f"{size:,.1f} KiB" if size < 1024 else f"{size / 1024:,.1f} MiB"


def _file(name):
    """The path to write to, checked before anything is measured."""
    path = Path(name)
    if path.is_dir() or not path.name:
        raise ValueError(f"--out: {name} is a folder, expected a file such as ranks.json")
    if not path.parent.is_dir():
        raise ValueError(f"--out: there is no folder {path.parent} to write {path.name} to")
    return path


def _write(path, told):
    try:
        with whole(path) as part:
            part.write_text(f"{told}\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out: {path} can't be written ({error.strerror})") from None
