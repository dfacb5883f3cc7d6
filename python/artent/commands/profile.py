"""``artent profile``: the entanglement of what fine-tuning wrote, module by module: table, JSON, files and figures."""

import json
import os
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path

import torch
from tqdm import tqdm

from artent.checkpoints import pending_updates
from artent.commands.options import device, drawing
from artent.commands.profile_results import Results, draw, fingerprint, record_of, write_parquet
from artent.commands.profile_table import by_number, lines, unchanged_lines
from artent.distributed import launched
from artent.entanglement import EntanglementProfile
from artent.measure import measure
from artent.schmidt import Plan
from artent_ext._version import __version__


def run(options):
    """Measure and tell. ``options``: what ``artent.cli`` parsed. Raises ValueError for what can't be used.

    Under torchrun every process runs it and the modules are shared out. The first one alone prints, writes and raises;
    where it raises, the others leave with SystemExit.
    """
    start = time.perf_counter()
    with _one_voice() as processes, ExitStack() as stack:
        head, plan, pending, results, plots = _together(processes, lambda: _prepare(options, processes, stack))
        earlier = processes.broadcast({} if results is None else results.earlier)
        records = dict(earlier)
        if results is not None:
            options.stopped = "; what was measured is kept, and --resume goes on"
        try:
            for record in _records([one for one in pending if one.name not in earlier], processes, plan):
                records[record["module"]] = record
                if results is not None:
                    results.write(record)
        except KeyboardInterrupt:
            if processes.main and len(records) > len(earlier) and not options.json:
                _tell(head, records, len(earlier), time.perf_counter() - start)
            raise
        if processes.main:
            head["seconds"] = time.perf_counter() - start
            _finish(options, head, records, len(earlier), results, plots)


@contextmanager
def _one_voice():
    """The processes that torchrun started, of which the first alone tells what went wrong."""
    processes = None
    try:
        with launched() as processes:
            yield processes
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if processes is not None and not processes.main:
            raise SystemExit(2) from None
        if isinstance(error, RuntimeError) and (processes is None or processes.size > 1):
            raise ValueError(str(error)) from error  # of a process that was lost, or could not begin
        raise
    except KeyboardInterrupt:
        if processes is not None and not processes.main:
            raise SystemExit(130) from None
        raise


def _together(processes, step):
    """What ``step`` gives, where it went well in every process; else its error, in every process."""
    found = error = None
    try:
        found = step()
    except (ValueError, OSError, ImportError) as raised:
        if processes.size == 1:
            raise
        error = ValueError(str(raised))
    if processes.size > 1:
        processes.agree(error)
    return found


def _prepare(options, processes, stack):
    """What is checked and opened before anything is measured: (header, plan, updates, ``Results``, what draws).

    The last two are for the first process only, and None for the others or where there is no ``--out``.
    """
    plan = Plan(options.method, options.alpha, options.log_base, options.rank, options.max_error)
    if options.resume and options.out is None:
        raise ValueError("--resume needs --out, the folder of the run to go on with")
    where = device(options.device)
    if where.type == "cuda" and where.index is None and processes.size > 1:
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    plots = drawing(options) if processes.main else None
    pending = _pending(options, where)
    head = {
        "kind": "run",
        "command": "profile",
        "artent": __version__,
        "torch": torch.__version__,
        "tuned": options.tuned,
        "base": options.base,
        "targets": options.targets,
        "options": {**vars(plan), "alpha": "inf" if plan.alpha == inf else plan.alpha},
        "device": str(where),
        "processes": processes.size,
        "inputs": {"tuned": fingerprint(options.tuned), "base": fingerprint(options.base)},
        "pending": len(pending),
    }
    results = None
    if options.out is not None and processes.main:
        results = stack.enter_context(Results(options.out, head, options.resume))
    return head, plan, pending, results, plots


def _pending(options, where):
    tuned = Path(options.tuned)
    if options.base is None and tuned.exists() and not (tuned / "adapter_config.json").is_file():
        raise ValueError(
            f"--base is missing: {options.tuned} is no adapter (it holds no adapter_config.json), so its update is the "
            "difference from the checkpoint that it was tuned from, a folder or a .safetensors file"
        )
    try:
        return pending_updates(options.tuned, options.base, targets=options.targets, device=where)
    except (ValueError, OSError) as error:  # which speaks of the function's arguments
        raise ValueError(str(error).replace("model_or_path", "TUNED")) from error


def _records(pending, processes, plan):
    """Records of modules as they are measured, behind a progress bar where somebody looks."""
    hidden = not (processes.main and sys.stderr.isatty())
    try:
        with tqdm(total=len(pending), unit="module", disable=hidden, leave=False) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "max_error: ")  # _tell says where, once
            for measured in measure(pending, processes=processes, **vars(plan)):
                bar.update()
                yield record_of(measured)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"--device: its memory is too small ({error}). --device cpu has more") from error


def _finish(options, head, records, earlier, results, plots):
    """Files, then words: whoever reads the words may stop reading, and a full disk does not take them along."""
    ordered = [records[name] for name in sorted(records, key=by_number)]
    made = []
    try:
        if results is not None:
            if len(ordered) > earlier:
                results.write({"kind": "done", "modules": len(ordered), "seconds": head["seconds"]})
            made = _write(results.folder, ordered, plots)
    finally:
        if options.json:
            modules = [record for record in ordered if record["kind"] == "profile"]
            unchanged = [record["module"] for record in ordered if record["kind"] == "unchanged"]
            print(json.dumps({**head, "unchanged": unchanged, "modules": modules}))
        else:
            _tell(head, records, earlier, head["seconds"])
    if made and not options.json:
        print()
        for path in made:
            print(f"Written: {path}")


def _write(folder, records, plots):
    """Parquet and figures of all that was measured; the paths of all files."""
    profiles = {r["module"]: EntanglementProfile.from_dict(r) for r in records if r["kind"] == "profile"}
    made = [folder / "results.jsonl"]
    if profiles:
        made += [write_parquet(folder, [r for r in records if r["kind"] == "profile"])]
        made += draw(folder, profiles, plots) if plots is not None else []
    return [path for path in made if path is not None]


def _tell(head, records, earlier, seconds):
    profiles = {name: EntanglementProfile.from_dict(r) for name, r in records.items() if r["kind"] == "profile"}
    unchanged = [name for name, r in records.items() if r["kind"] == "unchanged"]
    base = f" against {head['base']}" if head["base"] else ""
    print(f"{head['tuned']}{base}: {len(profiles)} weight updates")
    print()
    for line in lines(profiles):
        print(line)
    for line in unchanged_lines(unchanged):
        print(line)
    if not profiles:
        print(
            "Nothing changed. Likely cause: training has not begun (LoRA's B starts at zero), or --base is TUNED itself"
        )
    rest = f" ({earlier} more from before)" if earlier else ""
    print(
        f"{len(records) - earlier} of {head['pending']} modules measured in {seconds:.2f} s on {head['device']}{rest}"
    )
    _tell_of_error(head, profiles)


def _tell_of_error(head, profiles):
    """Say once where "randomized" ended above ``--max-error``."""
    most = head["options"]["max_error"]
    errors = {name: float(p.error.amax()) for name, p in profiles.items() if p.bonds and most is not None}
    missed = {name: error for name, error in errors.items() if error > most * (1 + 1e-9)}
    if missed:
        worst = max(missed, key=missed.get)
        print(
            f"artent profile: --max-error {most:g} is missed at {len(missed)} of {len(profiles)} modules (worst "
            f"{missed[worst]:.2g} at {worst}): their spectra are flat. Give --method auto or exact, or a larger --rank",
            file=sys.stderr,
        )
