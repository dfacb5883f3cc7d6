"""``artent profile``: the entanglement of what fine-tuning wrote, module by module: table, JSON, files and figures."""

import json
import signal
import sys
import threading
import time
import warnings
from contextlib import ExitStack, closing, contextmanager
from math import inf
from pathlib import Path

import torch
from tqdm import tqdm

from artent.checkpoints import pending_updates
from artent.commands.options import device, drawing, plain_warnings
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
        head, asked, pending, results, plots = _together(processes, lambda: _prepare(options, processes, stack))
        records = {} if results is None else dict(results.earlier)
        earlier = frozenset(processes.broadcast(list(records)))
        if results is not None:
            options.stopped = "; what was measured is kept, and --resume goes on"
        new = [one for one in pending if one.name not in earlier]
        try:
            for record in stack.enter_context(closing(_records(new, processes, asked))):
                records[record["module"]] = record
                if results is not None:
                    results.write(record)
        except (Exception, KeyboardInterrupt) as error:
            some = processes.main and len(records) > len(earlier)
            if some and not options.json:  # what was measured is not lost
                _tell(head, records, len(earlier), time.perf_counter() - start)
            told = (ValueError, OSError) if processes.size == 1 else (ValueError, OSError, RuntimeError)
            if some and results is not None and isinstance(error, told):
                raise ValueError(f"{error}{options.stopped}") from error
            raise
        if processes.main:
            head["seconds"] = time.perf_counter() - start
            _finish(options, head, records, len(earlier), results, plots)


@contextmanager
def _one_voice():
    """The processes that torchrun started, of which the first alone tells what went wrong."""
    processes = None
    try:
        with launched() as processes, _time_to_tell(processes), plain_warnings("profile", silent=not processes.main):
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


@contextmanager
def _time_to_tell(processes):
    """When one process has ended torchrun asks the others to, and waits: the first tells what was measured."""
    if not processes.main or processes.size == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    """What is checked and opened before anything is measured.

    (header, options of ``entanglement_profile``, updates, ``Results``, what draws); the last two are for the first
    process only, and None for the others or where there is no ``--out``.
    """
    asked = {name: getattr(options, name) for name in ("method", "alpha", "log_base", "rank", "max_error")}
    Plan(**asked)  # which checks them
    if options.resume and options.out is None:
        raise ValueError("--resume needs --out, the folder of the run to go on with")
    where = _device(options.device)
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
        "options": {**asked, "alpha": "inf" if options.alpha == inf else options.alpha},
        "device": str(where),
        "processes": processes.size,
        "inputs": {"tuned": fingerprint(options.tuned), "base": fingerprint(options.base)},
        "pending": len(pending),
    }
    results = None
    if options.out is not None and processes.main:
        results = stack.enter_context(Results(options.out, head, options.resume))
    return head, asked, pending, results, plots


def _device(name):
    where = device(name)
    if where.type == "cpu":
        return torch.device("cpu")
    if where.type != "cuda":
        raise ValueError(f"--device: {name!r} has no float64, which profiles are summed up in; expected cpu or cuda")
    return where if where.index is not None else torch.device("cuda", torch.cuda.current_device())  # this process's own


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


def _records(pending, processes, asked):
    """Records of modules as they are measured, behind a progress bar where somebody looks."""
    hidden = not (processes.main and sys.stderr.isatty())
    try:
        with tqdm(total=len(pending), unit="module", disable=hidden, leave=False) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "max_error: ")  # _tell says where, once
            for measured in measure(pending, processes=processes, keep_going=True, **asked):
                bar.update()
                yield record_of(measured)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"--device: its memory is too small ({error}). --device cpu has more") from error


def _finish(options, head, records, earlier, results, plots):
    """Files, then words: whoever reads the words may stop reading, and a full disk does not take them along."""
    ordered = [records[name] for name in sorted(records, key=by_number)]
    modules, made = [record for record in ordered if record["kind"] == "profile"], []
    failed = {record["module"]: record["reason"] for record in ordered if record["kind"] == "failed"}
    try:
        if results is not None:
            if not failed and (len(ordered) > earlier or not results.done):
                results.write({"kind": "done", "modules": len(ordered), "seconds": head["seconds"]})
            made = _write(results.folder, modules, plots)
    finally:
        if options.json:
            unchanged = [record["module"] for record in ordered if record["kind"] == "unchanged"]
            print(json.dumps({**head, "unchanged": unchanged, "failed": failed, "modules": modules}))
        else:
            _tell(head, records, earlier, head["seconds"])
        _tell_of_error(head, modules)
    if made and not options.json:
        print()
        for path in made:
            print(f"Written: {path}")
    if failed:
        reasons = list(failed.values())
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise ValueError(f"{len(failed)} of {len(ordered)} modules have no profile: {'; '.join(reasons[:3])}{more}")


def _write(folder, modules, plots):
    """Parquet and figures of all that was measured; the paths of all files."""
    made = [folder / "results.jsonl"]
    if modules:
        made += [write_parquet(folder, modules)]
    if modules and plots is not None:
        made += draw(folder, {r["module"]: EntanglementProfile.from_dict(r) for r in modules}, plots)
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
    measured = sum(r["kind"] != "failed" for r in records.values()) - earlier
    if len(unchanged) == len(records):
        print(
            "Nothing changed. Likely cause: training has not begun (LoRA's B starts at zero), or --base is TUNED itself"
        )
    rest = f" ({earlier} more from before)" if earlier else ""
    print(f"{measured} of {head['pending']} modules measured in {seconds:.2f} s on {head['device']}{rest}")


def _tell_of_error(head, profiles):
    """Say once where "randomized" ended above ``--max-error``."""
    most = head["options"]["max_error"]
    if most is None or head["options"]["method"] != "randomized":
        return
    errors = {r["module"]: max((u - l) / 2 for l, u in zip(r["lower"], r["upper"])) for r in profiles if r["lower"]}
    missed = {name: error for name, error in errors.items() if error > most * (1 + 1e-9)}
    if missed:
        worst = max(missed, key=missed.get)
        print(
            f"artent profile: --max-error {most:g} is missed at {len(missed)} of {len(profiles)} modules (worst "
            f"{missed[worst]:.2g} at {worst}), likely because their spectra are flat. Give --method auto or exact, "
            "or a larger --rank",
            file=sys.stderr,
        )
