"""Who imports Triton first, and what happens where there is none. Each case needs a fresh Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tutor import kernels

ROOT = Path(__file__).parents[2]
HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""
on_cpu_with_triton = pytest.mark.skipif(torch.cuda.is_available() or not kernels.available(),
                                        reason="about Triton's interpreter, on a machine without a GPU")


def python(code: str, **environment: str) -> str:
    """Run code in a new process without TRITON_INTERPRET and return what it prints; its error is ours."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


USE = """
import torch
from tutor.kernels.flash import flash_attention
x = torch.ones(1, 1, 3, 16)
print(kernels.interpreted(), flash_attention(x, x, x).o.sum().item())
"""


@on_cpu_with_triton
def test_kernels_first_then_transformers():
    assert python("from tutor import kernels\nfrom transformers import LlamaForCausalLM\n" + USE) == "True 48.0"


@on_cpu_with_triton
def test_transformers_first_is_refused_with_the_remedy():
    told = python("""
from transformers import LlamaForCausalLM
import sys
assert "triton" in sys.modules, "transformers no longer imports triton: this test shows nothing"
try:
    import tutor.kernels
except RuntimeError as error:
    print(error)
""")
    assert "TRITON_INTERPRET=1" in told and "Restart" in told


@pytest.mark.slow
@on_cpu_with_triton
def test_transformers_first_with_the_variable_set():
    code = "from transformers import LlamaForCausalLM\nfrom tutor import kernels\n" + USE
    assert python(code, TRITON_INTERPRET="1") == "True 48.0"


@on_cpu_with_triton
def test_setting_the_variable_too_late_is_noticed():
    told = python("""
import os, triton.language
os.environ["TRITON_INTERPRET"] = "1"
try:
    import tutor.kernels
except RuntimeError as error:
    print(error)
""")
    assert "imported before" in told


def test_importing_the_package_imports_neither_torch_nor_triton():
    assert python("import sys, tutor; print('torch' in sys.modules, 'triton' in sys.modules)") == "False False"


def test_looking_for_kernels_does_not_import_triton():
    code = "import sys, tutor.kernels as k; k.available(); dir(k); k.roofline; print('triton' in sys.modules)"
    assert python(code) == "False"


def test_without_triton_everything_but_the_kernels_works():
    told = python(HIDE + """
import importlib, pkgutil, torch
import numpy as np
import tutor
from tutor import catalog, kernels
assert not kernels.available()
assert kernels.roofline.hardware("H100 SXM").bandwidth == 3.35e12
ids = kernels.graph_search.beam_search(np.int32([[1], [0]]), np.float32([[0], [3]]), np.float32([[2]]), 0, 2)[0]
assert ids.tolist() == [[1, 0]]                                             # Numba compiles it, for the CPU
flash = catalog.get("attention", "flash").build()
x = torch.ones(1, 1, 3, 16)
assert flash.attend(x, x, x).o.sum() == 48
whole = lambda: importlib.import_module("tutor.kernels.flash")
for use in (lambda: kernels.flash, kernels.require, kernels.interpreted, whole):
    try:
        use()
        print("no error")
    except RuntimeError as error:
        assert "pip install triton" in str(error) and "references" in str(error)
print(len(catalog.methods("attention")) >= 7)
""")
    assert told == "True"


def test_an_unknown_kernel_is_named():
    with pytest.raises(AttributeError, match="no attribute 'flush'; kernels: .*flash"):
        kernels.flush  # noqa: B018
