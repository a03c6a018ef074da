"""KV cache: what a model may forget, measured in real bytes on a real model.

A `RaggedCache` holds rows; a policy (`tutor.kvcache.policies`, one file each) says which of them stay.

>>> from tutor.kvcache import RaggedCache, make
>>> cache = RaggedCache(make("window"), budget=256, n_layers=30)
"""

from __future__ import annotations

from tutor import catalog
from tutor.kvcache.policy import Policy
from tutor.kvcache.ragged import RaggedCache
from tutor.kvcache.rows import Rows
from tutor.kvcache.select import Keep, keep_top

__all__ = ["Keep", "Policy", "RaggedCache", "Rows", "keep_top", "make"]


def make(name: str | Policy, **params: object) -> Policy:
    """A policy by its catalog name: `make("sinks_window", n_sink=4)`; a policy passes through unchanged."""
    if isinstance(name, Policy):
        if params:
            raise ValueError(f"parameters {sorted(params)} need a policy's name; got the finished policy {name!r}")
        return name
    return catalog.get("kvcache", name).build(**params)
