"""Verifiers: one file per method."""

from __future__ import annotations


def verifier(name):
    """A verifier by its catalog name ("chain", "match", "recursive", …), or the object itself."""
    from tutor import catalog

    if not isinstance(name, str):
        return name
    known = {m.name: m for m in catalog.methods("speculative") if "verifier" in m.flags}
    if name not in known:
        raise ValueError(f"verify must be 'auto', {', '.join(map(repr, known))} or a verifier object; got {name!r}")
    return known[name].build()


def choose(tree):
    """The verifier that `verify="auto"` takes for a tree: the one that uses its sampling history, if it has one."""
    if len(tree) == 1 or not tree.sampled:
        return verifier("match")
    return verifier("chain" if tree.is_chain else "recursive")
