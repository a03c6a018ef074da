"""Verifiers: one file per method."""

from __future__ import annotations


def verifier(name):
    """A verifier by name ("chain", "match", "recursive"), or the object itself."""
    from tutor.speculative.verify.chain import Chain
    from tutor.speculative.verify.match import Match
    from tutor.speculative.verify.recursive import Recursive

    if not isinstance(name, str):
        return name
    known = {"chain": Chain, "match": Match, "recursive": Recursive}
    if name not in known:
        raise ValueError(f"verify must be 'auto', {', '.join(map(repr, known))} or a verifier object; got {name!r}")
    return known[name]()


def choose(tree):
    """The verifier that `verify="auto"` takes for a tree: the one that uses its sampling history, if it has one."""
    if len(tree) == 1 or not tree.sampled:
        return verifier("match")
    return verifier("chain" if tree.is_chain else "recursive")
