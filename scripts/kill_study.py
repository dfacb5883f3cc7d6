"""Is a study that is killed at random moments, and resumed, the study that is left alone? To the last bit?

    python scripts/kill_study.py [--config smoke] [--set key=value] [--kills 20] [--seed 0] [--keep FOLDER]

Runs the study whole; then a copy that is killed (SIGKILL, with every process it has started) after a random time and
resumed, again and again, until it ends; then further copies, until there were so many kills. The times are uniform over
the whole run's wall time, starting up and writing checkpoints included, each time anew. Then all current records of
each copy are compared with those of the whole run, bit for bit, and so are its tables and samples. Of the records the
clock is left out (seconds, time), and that a run was resumed.

Prints what it did. Exit status 1 where something differs, or a study fails.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from artent.records import read_records
from artent.study.store import current_records, stage_of

CLOCK = ("seconds", "time")
OF_THE_RUN = ("resumed", "finished")  # these tell of the run rather than of its results
COMPARED = ("tables", "samples")


def main():
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-study-") as scratch:
        folder = Path(options.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return 0 if proved(options, folder) else 1


def parser():
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("--config", default="smoke", help="the study (%(default)s)")
    found.add_argument(
        "--set", dest="changes", metavar="KEY=VALUE", action="append", default=[], help="as of the study"
    )
    found.add_argument("--kills", type=int, default=20, help="how many (%(default)s)")
    found.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    found.add_argument("--keep", metavar="FOLDER", help="where the runs are left to be looked at")
    return found


def proved(options, folder):
    """Runs everything; whether all copies ended like the whole run."""
    whole = Study(options, folder / "whole")
    took = whole.run()
    if took is None:
        print(f"the whole run failed: {whole.log}")
        return False
    print(f"whole run: {took:.0f} s, {len(whole.results())} records")
    moments, left, copies, same = random.Random(options.seed), options.kills, 0, True
    while left > 0:
        copies += 1
        copy = Study(options, folder / f"killed-{copies}")
        kills = copy.run_with_kills(moments, took, left)
        if kills is None:
            print(f"copy {copies} failed: {copy.log}")
            return False
        left -= kills
        took = min(took, copy.took)  # other work on the machine may have stretched the whole run
        differences = list(compare(whole, copy))
        same &= not differences
        fell = "; ".join(copy.moments) or "none"
        print(f"copy {copies}: {kills} kills ({fell}): {'differs' if differences else 'the same'}", flush=True)
        for difference in differences[:20]:
            print(f"  {difference}")
    print(
        f"{options.kills - left} kills in {copies} copies of {options.config}: {'the same' if same else 'NOT THE SAME'}"
    )
    return same


class Study:
    """One folder in which the study is run, and killed; ``took`` seconds where it was left alone."""

    def __init__(self, options, folder):
        self.folder, self.log, self.moments, self.took = folder, folder.with_suffix(".log"), [], float("inf")
        self.command = [sys.executable, "-m", "artent.cli", "study", "--config", options.config, "--out", str(folder)]
        for change in options.changes:
            self.command += ["--set", change]

    def start(self, resume=False):
        resume = resume and self.folder.exists() and any(self.folder.iterdir())
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [*self.command, *(["--resume"] if resume else [])], stdout=log, stderr=log, start_new_session=True
            )

    def run(self):
        """Seconds it took, None where it failed."""
        begin = time.monotonic()
        return None if self.start().wait() else time.monotonic() - begin

    def run_with_kills(self, moments, took, most):
        """Kill and resume until it ends, at most so many times; how many it were, None where it failed."""
        kills, begin = 0, time.monotonic()
        while True:
            before, process = self.recorded(), self.start(resume=kills > 0)
            try:
                wait = moments.uniform(0, took) if kills < most else None
                failed = process.wait(wait)
                self.took = float("inf") if kills else time.monotonic() - begin
                return None if failed else kills
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                self.moments.append(self.reached(before))

    def reached(self, before):
        """Where the kill fell, in words: after which whole record, if one was written since there were ``before``."""
        records = self.recorded()
        last = next((r for r in reversed(records[len(before) :]) if "method" in r), None)
        return "starting up" if last is None else f"after {' '.join(map(str, (*stage_of(last), last['kind'])))}"

    def recorded(self):
        path = self.folder / "results.jsonl"
        return read_records(path) if path.exists() else []

    def results(self):
        """{(stage, kind, what of, how many before): record} of what counts, without the clock."""
        found, before = {}, Counter()
        for record in current_records(self.recorded()):
            if record["kind"] in OF_THE_RUN:
                continue
            what = [str(record.get(key)) for key in ("kind", "step", "module", "text", "model", "treatment", "control")]
            key = (stage_of(record), *what)
            before[key] += record["kind"] != "setup"  # of which there is one for every time it was begun
            found[(*key, before[key])] = {k: v for k, v in record.items() if k not in CLOCK}
        return found


def compare(whole, copy):
    """What differs, told one by one."""
    a, b = whole.results(), copy.results()
    for key in sorted(a.keys() | b.keys(), key=str):
        told = " ".join(str(part) for part in key if part != "None")
        if key not in b or key not in a:
            yield f"{told}: only in the {'whole run' if key in a else 'copy'}"
        elif a[key] != b[key]:
            fields = [k for k in a[key].keys() | b[key].keys() if a[key].get(k) != b[key].get(k)]
            yield f"{told}: {', '.join(sorted(fields))}"
    for name in COMPARED:
        files = [
            {p.relative_to(s.folder): p for p in (s.folder / name).rglob("*") if p.is_file()} for s in (whole, copy)
        ]
        for path in sorted(files[0].keys() | files[1].keys()):
            if path not in files[0] or path not in files[1]:
                yield f"{path}: only in the {'whole run' if path in files[0] else 'copy'}"
            elif files[0][path].read_bytes() != files[1][path].read_bytes():
                yield f"{path}: its bytes"


if __name__ == "__main__":
    sys.exit(main())
