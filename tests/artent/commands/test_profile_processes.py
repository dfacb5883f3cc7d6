"""``artent profile`` as a process: a pipe that closes, a kill, torchrun; what it does not import."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from artent.cli import main
from artent.records import read_records

PROFILE = [sys.executable, "-m", "artent.cli", "profile"]


def start(command, stdout=subprocess.PIPE, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(list(map(str, command)), stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


def measured(folder):
    """{module: entropies} in the order of the file, None for what did not change; none before there is a file."""
    path = folder / "results.jsonl"
    records = read_records(path) if path.exists() else []
    return {r["module"]: r.get("entropy") for r in records if "module" in r}


def test_a_reader_that_has_read_enough(files):
    read, write = os.pipe()
    os.close(read)
    process = start([*PROFILE, files.adapter], stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (1, "")


SLOW = """
import sys, time
from artent.commands import profile
measure = profile.measure
def slow(pending, **options):
    for measured in measure(pending, **options):
        yield measured
        time.sleep(0.3)
profile.measure = slow
from artent.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_goes_on(files, tmp_path, capsys):
    arguments = ["profile", files.adapter, "--out", str(tmp_path / "killed"), "--no-plot"]
    process = start([sys.executable, "-c", SLOW, *arguments])
    end = time.monotonic() + 120
    while len(measured(tmp_path / "killed")) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = measured(tmp_path / "killed")
    assert 2 <= len(kept) < 9
    assert main([*arguments, "--resume"]) == 0
    whole = measured(tmp_path / "killed")
    assert list(whole.items())[: len(kept)] == list(kept.items())
    assert main(["profile", files.adapter, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert whole.pop(files.idle) is None
    for record in told["modules"]:
        assert whole.pop(record["module"]) == pytest.approx(record["entropy"], abs=1e-6)
    assert whole == {}


def test_torchrun_shares_the_modules_out_and_one_process_tells(files, tmp_path, capsys):
    arguments = ["profile", files.tuned, "--base", files.base, "--json"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start([*launcher, "-m", "artent.cli", *arguments, "--out", tmp_path])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert main(arguments) == 0
    alone, told = json.loads(capsys.readouterr().out), json.loads(out)
    assert told["processes"] == 2
    assert [r["module"] for r in told["modules"]] == [r["module"] for r in alone["modules"]]
    for one, two in zip(alone["modules"], told["modules"]):
        assert two["entropy"] == pytest.approx(one["entropy"], abs=1e-6)
    assert told["unchanged"] == alone["unchanged"] == [files.idle]
    records = read_records(tmp_path / "results.jsonl")
    assert [r["kind"] for r in records].count("run") == 1
    assert len(measured(tmp_path)) == len(records) - 2 == 9
    assert len(list((tmp_path / "figures").iterdir())) == 4


def two(*commands):
    """[(exit status, standard output, standard error)] of commands that are two processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [start(command, RANK=str(i), LOCAL_RANK=str(i), **together) for i, command in enumerate(commands)]
    return [(*process.communicate(timeout=120), process.returncode) for process in processes]


def test_of_two_processes_one_tells_the_error(files, tmp_path):
    (tmp_path / "file").write_text("mine")
    command = [*PROFILE, files.adapter, "--out", tmp_path / "file"]  # which only the first process opens
    (out, err, code), second = two(command, command)
    assert second == ("", "", 2)
    assert (out, code) == ("", 2)
    [line] = err.splitlines()
    assert line.startswith("artent profile: --out: ")
    assert "is a file, expected a folder" in line


KILLED = """
import os, signal, sys
from artent import measure
measure.entanglement_profile = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from artent.cli import main
main(sys.argv[1:])
"""


def test_of_two_processes_one_is_killed(files, tmp_path):
    arguments = ["profile", files.tuned, "--base", files.base, "--out", tmp_path, "--no-plot"]
    (out, err, code), (_, _, killed) = two([*PROFILE, *arguments[1:]], [sys.executable, "-c", KILLED, *arguments])
    assert (out, code, killed) == ("", 2, -signal.SIGKILL)
    [line] = err.splitlines()
    assert line.startswith("artent profile: rank 1 of 2 ended")
    [head] = read_records(tmp_path / "results.jsonl")
    assert head["kind"] == "run"
    assert main([*map(str, arguments), "--resume"]) == 0  # alone
    assert len(measured(tmp_path)) == 9


def test_what_is_imported(files):
    """Profiles need torch and little else; help needs no torch."""
    heavy = ("transformers", "peft", "matplotlib", "pyarrow", "torch._dynamo", "sympy", "pandas")
    code = f"""
import sys
from artent.cli import main
try:
    main(["profile", "--help"])
except SystemExit:
    helped = "torch" in sys.modules
main(["profile", sys.argv[1]])
print([name for name in {heavy} if name in sys.modules], helped)
"""
    out, err = start([sys.executable, "-c", code, files.adapter]).communicate(timeout=120)
    assert (out.splitlines()[-1], err) == ("[] False", "")
