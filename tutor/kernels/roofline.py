"""Rooflines: the least time a job can take on given hardware, from the bytes it must move and the operations to do.

A floor, not a forecast: `seconds = max(bytes / bandwidth, flops / peak)`, with every byte moved once and every unit
busy. A kernel is judged by the share of its floor that it reaches.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """Peak figures from the maker's data sheet: bandwidth in bytes/s, dense operations/s by dtype."""

    name: str
    bandwidth: float
    peak: dict[str, float]


HARDWARE = {h.name: h for h in (
    Hardware("A100 SXM 80GB", 2.039e12, {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12}),
    Hardware("H100 SXM", 3.35e12, {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}),
    Hardware("H200 SXM", 4.8e12, {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}),
)}
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Roofline:
    """What a job must move and compute, and the floor that follows on one hardware."""

    bytes: int
    flops: int
    hardware: Hardware
    dtype: str

    @property
    def memory_seconds(self) -> float:
        return self.bytes / self.hardware.bandwidth

    @property
    def compute_seconds(self) -> float:
        return self.flops / self.hardware.peak[self.dtype]

    @property
    def seconds(self) -> float:
        """The floor."""
        return max(self.memory_seconds, self.compute_seconds)

    @property
    def bound_by(self) -> str:
        return "memory" if self.memory_seconds >= self.compute_seconds else "compute"

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes


def hardware(name: str) -> Hardware:
    """A row of the table; a `ValueError` lists the names."""
    if name not in HARDWARE:
        raise ValueError(f"hardware must be one of {', '.join(HARDWARE)}; got {name!r}. "
                         "Add its data-sheet figures in tutor/kernels/roofline.py")
    return HARDWARE[name]
