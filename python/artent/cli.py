"""The command line: ``artent study`` runs the study, ``artent report`` tells what its records say."""

from __future__ import annotations

import argparse
import sys

from artent_ext._version import __version__

__all__ = ["main"]


def main(argv=None):
    """Run a command; returns its exit status. Errors that the user can mend are told without a traceback."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"artent {options.command}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"artent {options.command}: {error}; pip install 'artent[study]' brings what it needs", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what was measured is kept, and --resume goes on", file=sys.stderr)
        return 130
    return 0


def _parser():
    parser = argparse.ArgumentParser(prog="artent", description="Entanglement of weight updates and of attention.")
    parser.add_argument("--version", action="version", version=f"artent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    study = commands.add_parser("study", help="pretrain, fine-tune and measure a small model; minutes on a laptop")
    study.add_argument("--config", default="quick", help="quick takes minutes, smoke seconds (%(default)s)")
    study.add_argument("--out", default="artent-study", help="folder of records, figures and report (%(default)s)")
    study.add_argument("--resume", action="store_true", help="go on with the study in --out")
    study.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting of the configuration"
    )
    study.set_defaults(run=_study)

    report = commands.add_parser("report", help="write report.html and figures from a study's records")
    report.add_argument("runs", nargs="+", metavar="RUN", help="folder of a study")
    report.set_defaults(run=_report)
    return parser


def _study(options):
    from artent.study.config import named_config
    from artent.study.run import run_study

    config = named_config(options.config).override(options.set)
    _tell(run_study(config, options.out, resume=options.resume))


def _report(options):
    from artent.study.report import write_report

    for run in options.runs:
        _tell(write_report(run))


def _tell(page):
    """The claims of a report, each with where it stands, and where to read on."""
    from artent.study.report import findings_in

    for found in findings_in(page.parent):
        print(f"- {found.claim} ({found.standing})")
    print(f"Report: {page}")


if __name__ == "__main__":
    sys.exit(main())
