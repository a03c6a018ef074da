"""Compile the backward (or `sparse`: the block-sparse) kernels for a GPU that is not here: `python … CAPABILITY [sparse]`.

Run in a process of its own, because Triton compiles or interprets for the whole life of a process.
"""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.kernels import block_sparse, flash_backward  # noqa: E402
from tutor.kernels.flash import _padded  # noqa: E402

HALVES = {"q_ptr", "k_ptr", "v_ptr", "o_ptr", "do_ptr", "dq_ptr", "dk_ptr", "dv_ptr"}
SINGLES = {"lse_ptr", "dlse_ptr", "delta_ptr"}


def compile_for(kernel, capability: int, dtype: str, d: int, causal: bool, block_m: int, block_n: int):
    """A kernel as its wrapper launches it: pointers, 32-bit sizes and strides, floats."""
    values = {"G": 3, "D": d, "DV": d, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": _padded(d), "BLOCK_DV": _padded(d),
              "CAUSAL": causal, "DOT_F32": False, "SIZE": 0, "WITH_LSE": True}
    constants = {name: value for name, value in values.items() if name in kernel.arg_names}
    kinds = {name: "*" + dtype for name in HALVES} | {name: "*fp32" for name in SINGLES}
    kinds |= {"indptr_ptr": "*i64", "cut_ptr": "*i64", "indices_ptr": "*i32", "scale_log2": "fp32", "scale": "fp32"}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 2})


if __name__ == "__main__":
    capability, sparse = int(sys.argv[1]), "sparse" in sys.argv
    kernels = (block_sparse._sparse_kernel,) if sparse else (flash_backward._dkdv_kernel, flash_backward._dq_kernel)
    for dtype, d, causal, m, n in (("bf16", 64, True, 64, 64), ("fp16", 128, False, 64, 64), ("fp32", 64, True, 32, 32)):
        for kernel in kernels if not (sparse and dtype == "fp32") else ():
            built = compile_for(kernel, capability, dtype, d, causal, m, n)
            ok = "mma" in built.asm["ptx"] or dtype == "fp32"            # exact fp32 products use no tensor cores
            print(kernel.__name__, dtype, d, "ptx", ok, "shared", built.metadata.shared, flush=True)
    if not sparse:
        built = compile_for(flash_backward._delta_kernel, capability, "bf16", 64, True, 64, 64)
        print("_delta_kernel ptx", "st.global" in built.asm["ptx"], flush=True)
