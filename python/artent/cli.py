"""The command line: study, report, profile, ranks, attention. Thin: the work is done elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys

__all__ = ["main"]


def main(argv=None):
    """Run a command; returns its exit status. Errors that the user can mend are told without a traceback."""
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # in a legacy encoding × and σ are told by ?, but told
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"artent {options.command}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        hint = "" if "pip install" in str(error) else f"; pip install 'artent[{options.extra}]' brings what it needs"
        print(f"artent {options.command}: {error}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped{options.stopped}", file=sys.stderr)
        return 130
    return 0


def _parser():
    parser = argparse.ArgumentParser(prog="artent", description="Entanglement of weight updates and of attention.")
    parser.set_defaults(extra="study", stopped="")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True)

    for add in (_study_parser, _report_parser, _profile_parser, _ranks_parser, _attention_parser):
        add(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        from artent import __version__  # with torch, which --help does without

        print(f"artent {__version__}")
        parser.exit()


def _study_parser(commands):
    study = commands.add_parser(
        "study", help="fine-tune a model by several methods, measure, compare; offline by default"
    )
    study.add_argument(
        "--config", default="quick", metavar="NAME|FILE", help="a configuration by name, or a .yaml file (%(default)s)"
    )
    study.add_argument("--list", action="store_true", help="list the configurations and what each is for")
    study.add_argument("--model", metavar="MODEL", help="folder or hub name of a causal LM (sets model.name)")
    study.add_argument("--data", metavar="DATA", help="dataset, file or folder of texts or chats (sets data.name)")
    study.add_argument("--seeds", metavar="S,S,…", help="seeds of every method (sets seeds)")
    study.add_argument("--out", default="artent-study", help="folder of records, figures and report (%(default)s)")
    study.add_argument("--resume", action="store_true", help="go on with the study in --out")
    study.add_argument("--dry-run", action="store_true", help="say what it would take, memory and time, and stop")
    study.add_argument(
        "--devices", type=_positive, metavar="N", help="devices that --dry-run reckons with (those of torchrun, or 1)"
    )
    study.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting, such as training.steps=100"
    )
    study.set_defaults(run=_study, stopped="; what was measured is kept, and --resume goes on")


def _report_parser(commands):
    report = commands.add_parser("report", help="write report.html, figures and tables from a study's records")
    report.add_argument("runs", nargs="+", metavar="RUN", help="folder of a study; several are compared")
    report.add_argument(
        "--out", default="artent-comparison", metavar="DIR", help="folder of the page that compares runs (%(default)s)"
    )
    report.set_defaults(run=_report)


def _profile_parser(commands):
    profile = commands.add_parser("profile", help="entanglement of what fine-tuning wrote, module by module")
    profile.add_argument(
        "tuned", metavar="TUNED", help="folder of a PEFT adapter or a checkpoint, or a .safetensors file"
    )
    profile.add_argument("--base", metavar="BASE", help="what it was tuned from; not needed for LoRA and MPS adapters")
    profile.add_argument(
        "--targets",
        type=_targets,
        metavar="T,T,…",
        help="endings of names, such as q_proj,v_proj, or a regular expression for whole names (all that changed)",
    )
    profile.add_argument(
        "--method",
        choices=("auto", "exact", "randomized", "hybrid"),
        default="auto",
        help="auto is exact without --max-error; hybrid estimates, with a standard error",
    )
    profile.add_argument("--max-error", type=float, metavar="E", help="the error in the entropies to be met")
    profile.add_argument("--rank", type=_positive, metavar="K", help="columns of the sketch, if randomized")
    profile.add_argument("--alpha", type=float, default=1.0, metavar="A", help="Rényi order (1: von Neumann)")
    profile.add_argument("--log-base", type=float, metavar="B", help="unit of the entropies, 2 for bits (nats)")
    profile.add_argument("--device", default="cpu", help="where it is computed (%(default)s)")
    profile.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    profile.add_argument(
        "--out", metavar="DIR", help="write DIR/results.jsonl, DIR/profiles.parquet and DIR/figures/*.png"
    )
    profile.add_argument("--resume", action="store_true", help="go on with the run in --out")
    profile.add_argument("--plot", action=argparse.BooleanOptionalAction, help="draw figures (where there is --out)")
    profile.set_defaults(run=_profile, extra="transformers")


def _ranks_parser(commands):
    ranks = commands.add_parser("ranks", help="a LoRA rank for every module, from what fine-tuning wrote")
    ranks.add_argument(
        "tuned",
        metavar="TUNED|results.jsonl",
        help="folder of a PEFT adapter or a checkpoint, a .safetensors file, or what artent profile --out wrote",
    )
    ranks.add_argument("--base", metavar="BASE", help="what it was tuned from; not needed for LoRA and MPS adapters")
    ranks.add_argument(
        "--targets", type=_targets, metavar="T,T,…", help="modules to take, as for artent profile (all that changed)"
    )
    ranks.add_argument(
        "--by", choices=("mass", "error", "entropy"), default="mass", help="what a rank has to meet (%(default)s)"
    )
    ranks.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="the mass ‖ΔW‖² to keep (0.9), the relative error allowed (0.3), or a factor on exp S(cut) (1)",
    )
    ranks.add_argument(
        "--parameters",
        type=_budget,
        metavar="N|P%",
        help="share out so many parameters instead, or a percentage of those there are now",
    )
    ranks.add_argument("--multiple-of", type=_positive, default=1, metavar="N", help="ranks are multiples of it (1)")
    ranks.add_argument("--minimum", type=_positive, default=1, metavar="R", help="the smallest rank (1)")
    ranks.add_argument("--maximum", type=_positive, metavar="R", help="the largest rank, before any target")
    ranks.add_argument(
        "--scaling", type=float, metavar="S", help="lora_alpha / r (an adapter's own, 1 for anything else)"
    )
    ranks.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    ranks.add_argument("--out", metavar="FILE", help="write that JSON object to FILE")
    ranks.set_defaults(run=_ranks, extra="peft")


def _attention_parser(commands):
    attention = commands.add_parser("attention", help="entanglement of a model's attention on a text")
    attention.add_argument("model", metavar="MODEL", help="folder or hub name of a causal LM, or of a PEFT adapter")
    attention.add_argument("--text", required=True, metavar="FILE", help="utf-8 text; - is standard input")
    attention.add_argument(
        "--lengths", type=_integers, metavar="T,T,…", help="tokens of prefixes (all there are, halved down to 16)"
    )
    attention.add_argument("--layers", type=_integers, metavar="L,L,…", help="layers to measure (all)")
    attention.add_argument("--max-tokens", type=_positive, metavar="N", help="use the first N tokens of the text")
    attention.add_argument("--variant", choices=("raw", "sink_removed", "row_normalised"), default="raw")
    attention.add_argument(
        "--method", choices=("auto", "exact", "streamed"), default="auto", help="auto is exact up to 1024 tokens"
    )
    attention.add_argument("--device", default="cpu", help="where the model runs (%(default)s)")
    attention.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    attention.add_argument("--json", action="store_true", help="print the record instead of the table")
    attention.add_argument(
        "--out", metavar="DIR", help="append the record to DIR/results.jsonl, draw DIR/figures/*.png"
    )
    attention.add_argument("--plot", action=argparse.BooleanOptionalAction, help="draw figures (where there is --out)")
    attention.set_defaults(run=_attention)


def _integers(text):
    return tuple(_natural(part) for part in text.split(","))


def _targets(text):
    """Endings between commas, as a list; what could not be names is a regular expression."""
    parts = [part.strip() for part in text.split(",")]
    if all(re.fullmatch(r"[\w.-]*", part) for part in parts):
        if not all(parts):
            raise argparse.ArgumentTypeError(
                f"expected endings with commas between them, such as q_proj,v_proj; got {text!r}"
            )
        return parts
    return text


def _budget(text):
    """A number of parameters, or the share that a percentage means."""
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else _positive(text.replace(",", ""))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"expected a number of parameters, or 50%; got {text!r}") from None


def _positive(text):
    if (number := _natural(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _natural(text):
    if not (text.strip().isascii() and text.strip().isdigit()):
        raise argparse.ArgumentTypeError(f"expected integers with commas between them, such as 256,1024; got {text!r}")
    return int(text)


def _study(options):
    from artent.study.config import config_names, described, named_config, override

    if options.list:
        for name in config_names():
            print(f"{name:24} {described(name)}")
        return
    paths = {"model.name": options.model, "data.name": options.data}  # quoted: they may hold commas
    changes = [f"{key}={json.dumps(path)}" for key, path in paths.items() if path is not None]
    changes += [] if options.seeds is None else [f"seeds={options.seeds}"]
    config = override(named_config(options.config), changes + options.set)
    if options.dry_run:
        from artent.study.estimate import dry_run

        print("\n".join(dry_run(config, options.devices).lines()))
        return
    from artent.study.run import run_study

    page = run_study(config, options.out, resume=options.resume)
    if page is not None:  # the first process has it
        _tell(page)


def _report(options):
    from artent.study.report import compare_runs, write_report

    for run in options.runs:
        _tell(write_report(run))
    if len(options.runs) > 1:
        print(f"Comparison: {compare_runs(options.runs, options.out)}")


def _profile(options):
    from artent.commands.profile import run

    run(options)


def _ranks(options):
    from artent.commands.ranks import run

    run(options)


def _attention(options):
    from artent.commands.attention import run

    run(options)


def _tell(page):
    """The claims of a report, each with where it stands, and where to read on."""
    from artent.study.report import findings_in

    for found in findings_in(page.parent):
        print(f"- {found.claim} ({found.standing})")
    print(f"Report: {page}")


if __name__ == "__main__":
    sys.exit(main())
