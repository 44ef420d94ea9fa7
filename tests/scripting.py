"""Programs and scripts in processes of their own."""

import json
import os
import subprocess
import sys

_DRIVER = """
import contextlib, importlib, io, json, sys
sys.path.insert(0, sys.argv[1])
from absl import flags
script = importlib.import_module(sys.argv[2])
answers = []
for arguments in json.loads(sys.stdin.read()):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            code = script.main(flags.FLAGS([script.__file__, *arguments]))
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


def call_all(root, script, folder, cases):
    """Calls a script's main with each list of arguments, in a folder.

    All in one process, since starting TensorFlow takes seconds.

    Returns:
        (exit code, standard output, standard error) of each call.
    """
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, root / "scripts", script],
        cwd=folder,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def reported(root, program):
    """Runs a program that prints "REPORT " and JSON, without GPUs; returns what it reported."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
            "CUDA_VISIBLE_DEVICES": "-1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("REPORT "))
    return json.loads(line.removeprefix("REPORT "))
