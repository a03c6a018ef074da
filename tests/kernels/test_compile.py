"""Every kernel compiles for a GPU that is not here, as its wrapper launches it, and fits that GPU's shared memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tutor import kernels

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

ROOT = Path(__file__).parents[2]
NO_PRODUCTS = {"_delta_kernel", "_fix_kernel", "_join_kernel", "_line_kernel", "_step_kernel"}     # the rest use matrix units


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is built for Linux")
@pytest.mark.parametrize("arguments", ["90", pytest.param("90 all", marks=pytest.mark.slow),
                                       pytest.param("80 all", marks=pytest.mark.slow)])
def test_every_launch_compiles(arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), *arguments.split()]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    launched = [line.split() for line in done.stdout.splitlines()]
    for call, kernel, uses_matrix_units, _ in launched:
        assert (uses_matrix_units == "True") == (kernel not in NO_PRODUCTS and "float32" not in call), (call, kernel)
    written = {name for file in (ROOT / "tutor" / "kernels").glob("*.py")
               for name in re.findall(r"^def (_\w*kernel)\(", file.read_text("utf-8"), re.MULTILINE)}
    missing = written - {kernel for _, kernel, *_ in launched}
    assert not missing, f"call the wrapper of {', '.join(sorted(missing))} in tests/kernels/compile_kernels.py"
