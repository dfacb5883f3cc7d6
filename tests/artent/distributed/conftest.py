"""Starting runs of several processes, each of one thread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_LIMIT = 240  # seconds; what takes longer hangs


@pytest.fixture(scope="session")
def launch():
    """launch(script, *arguments, torchrun=n): a script of this folder, or n processes of it; how it ended."""

    def run(script, *arguments, torchrun=None, **environment):
        command = [sys.executable]
        if torchrun:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"]
        command += [str(_HERE / script), *map(str, arguments)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | environment
        return subprocess.run(command, env=env, timeout=_LIMIT, capture_output=True, text=True, check=False)

    return run
