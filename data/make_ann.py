"""Make data/ann: docstring embeddings, and the recorded searches that figures show.

    python data/make_ann.py embeddings      # needs the encoder (tutor fetch); 2 minutes on two cores
    python data/make_ann.py traces          # from the embeddings, seconds

Source      docstrings of the standard library of the Python that runs this (named in docstrings_2k.json), under the
            Python Software Foundation License. Questions are ours. Encoder: all-MiniLM-L6-v2, Apache-2.0.
            Embeddings are stored as float16.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path

import numpy as np

from tutor.ann import corpus
from tutor.ann.flat import Flat
from tutor.ann.hnsw import HNSW
from tutor.ann.ivf import IVF
from tutor.ann.metrics import recall
from tutor.ann.record import Layout, record

HERE = Path(__file__).resolve().parent / "ann"
ROWS, SENTENCES, SEED = 2000, 200, 0

QUESTIONS = [
    "How do I sort a list?", "read a file line by line", "open a network connection", "parse command line arguments",
    "compress data with gzip", "run another program and get its output", "start a thread",
    "wait until all tasks are done", "convert a date to text", "find all matches of a pattern", "send an email",
    "download a web page", "compute a hash of a file", "pick a random element", "copy a directory",
    "write rows to a spreadsheet file", "parse an XML document", "measure how long code takes", "log an error message",
    "check that two floats are close", "store objects in a file", "list the files in a folder", "lock shared data",
    "set a breakpoint in the debugger",
]


def embeddings() -> None:
    from safetensors.numpy import save_file

    from tutor import texts
    from tutor.model import embed

    rng = np.random.default_rng(SEED)
    seen: set[str] = set()
    documents = []
    for name, text in texts.docstrings():
        words = " ".join(text.split())
        if len(words) >= 40 and words not in seen:
            seen.add(words)
            documents.append((name, text))
    documents = [documents[i] for i in np.sort(rng.choice(len(documents), ROWS, replace=False))]
    bodies = [" ".join(text.split()) for _, text in documents]

    # A query is a sentence of at least six words that its document, having two others, can do without.
    sentences, sources = [], []
    for i in rng.permutation(ROWS):
        parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", bodies[i])
        fit = [part for part in parts if len(part.split()) >= 6]
        if len(parts) >= 3 and fit and len(sources) < SENTENCES:
            taken = fit[rng.integers(len(fit))]
            sentences.append(taken)
            sources.append(i)
            bodies[i] = " ".join(part for part in parts if part != taken)

    encoder = embed.load()
    encode = lambda rows: encoder.encode(rows).astype(np.float16)
    HERE.mkdir(exist_ok=True)
    save_file({"base": encode(bodies), "sentences": encode(sentences), "questions": encode(QUESTIONS),
               "sources": np.asarray(sources, np.int32)}, HERE / "docstrings_2k.safetensors")
    about = {"provenance": f"{ROWS} docstrings of the standard library of Python {platform.python_version()}, drawn "
                           f"with seed {SEED} by data/make_ann.py; embedded by {embed.NAME} ({embed.WHEEL}) in "
                           "float32, stored as float16",
             "licence": "texts: Python Software Foundation License; encoder: Apache-2.0",
             "names": [name for name, _ in documents],
             "lines": [_short(text.strip().splitlines()[0]) for _, text in documents],
             "sentences": sentences, "questions": QUESTIONS}
    (HERE / "docstrings_2k.json").write_text(json.dumps(about, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def _short(line: str, most: int = 72) -> str:
    return line if len(line) <= most else line[:most - 1] + "…"


def traces() -> None:
    """HNSW and IVF searches among 600 docstrings, k = 8, for a question on which effort shows.

    The rows: the 8 best answers to every question, filled up at random. The question: of all, the one whose recall
    gains most between the smallest and the largest setting of both indexes.
    """
    c = corpus.docstrings("questions")
    answers = np.unique(Flat(exact=True).build(c.X, c.metric).search(c.Q, 8).ids)
    others = np.setdiff1d(np.arange(len(c.X)), answers)
    rows = np.sort(np.append(answers, np.random.default_rng(SEED).choice(others, 600 - len(answers), replace=False)))
    X, labels = c.X[rows], [_short(c.labels[i], 60) for i in rows]
    plane = Layout(X / np.linalg.norm(X, axis=1, keepdims=True))
    plans = {"hnsw": (HNSW(M=6, ef_construction=60).build(X, "cosine"), "ef", (8, 16, 64)),
             "ivf": (IVF(nlist=32).build(X, "cosine"), "nprobe", (1, 4, 16))}

    def gain(q: np.ndarray) -> float:
        every = lambda index: index.search(q, 8, **{index.effort: 600}).ids
        reached = [[recall(index.search(q, 8, **{knob: value}).ids, every(index)) for value in (values[0], values[-1])]
                   for index, knob, values in plans.values()]
        return sum(last - first for first, last in reached)

    best = int(np.argmax([gain(q) for q in c.Q]))
    for name, (index, knob, values) in plans.items():
        for value in values:
            trace = record(index, c.Q[best], 8, layout=plane, subject={"labels": labels, "query": c.asks[best]},
                           **{knob: value})
            path = trace.save(HERE / f"{name}_{knob}{value}.safetensors")
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {trace.describe(trace.steps - 1)}")


if __name__ == "__main__":
    what = sys.argv[1:] or ["embeddings", "traces"]
    for name in what:
        {"embeddings": embeddings, "traces": traces}[name]()
