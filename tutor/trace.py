"""Trace: the story an algorithm tells while it runs, in a form that can be drawn, spoken, saved and checked.

A trace holds named arrays (the state that a figure draws), a columnar table of events with past-tense kinds, and a
step for each event. A *step* is what one press of the right-arrow key advances. Figures draw traces and compute no
algorithm; exercises read their answers from traces; recording never changes a result.

A schema says which kinds a trace may hold and how a step is put in words:

>>> schema = Schema("demo/1", kinds=("kept", "evicted"), describe=lambda trace, step: f"step {step}")
>>> _ = register_schema(schema)
>>> recorder = Recorder("demo/1", method="window", params={"window": 4})
>>> recorder.event("evicted", pos=0)
>>> recorder.next_step()
>>> trace = recorder.finish(kept=np.arange(4))
>>> trace.steps, trace.describe(0)
(1, 'step 0')
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Schema:
    """What a kind of trace may contain. `name` ends in `/version`; a figure names the schemas it draws."""

    name: str
    kinds: tuple[str, ...]
    describe: Callable[[Trace, int], str]
    arrays: tuple[str, ...] = ()          # names that must be present
    units: dict[str, str] = field(default_factory=dict)


SCHEMAS: dict[str, Schema] = {}


def register_schema(schema: Schema) -> Schema:
    SCHEMAS[schema.name] = schema
    return schema


def schema_of(name: str) -> Schema:
    """The registered schema, or a `ValueError` that names it."""
    if name not in SCHEMAS:
        import tutor.schemas  # noqa: F401  (the built-in schemas register themselves on import)
    if name not in SCHEMAS:
        raise ValueError(f"unknown trace schema {name!r}; known: {', '.join(sorted(SCHEMAS))}. "
                         "It may come from a newer version of tutor: upgrade, or record the trace again.")
    return SCHEMAS[name]


@dataclass(frozen=True)
class Trace:
    """One recorded run.

    Attributes:
        schema: registered name, e.g. `"ann.search/1"`.
        method: catalog name of what ran, e.g. `"hnsw"`.
        params: its parameters (JSON values).
        subject: what it ran on: text, tokens, layer, head, seed … (JSON values).
        arrays: named NumPy arrays.
        events: columns of one length; `kind` (int, index into `schema.kinds`) and `step` (int32, ascending) are always there.
        steps: number of steps.
    """

    schema: str
    method: str
    params: dict[str, Any]
    subject: dict[str, Any]
    arrays: dict[str, np.ndarray]
    events: dict[str, np.ndarray]
    steps: int

    def __post_init__(self):
        spec = schema_of(self.schema)
        missing = [name for name in spec.arrays if name not in self.arrays]
        if missing:
            raise ValueError(f"trace of schema {self.schema!r} lacks arrays {missing}; record them in Recorder.finish()")
        lengths = {name: len(column) for name, column in self.events.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"event columns must have one length; got {lengths}")
        for name in ("kind", "step"):
            if name not in self.events:
                raise ValueError(f"events lack the column {name!r}")
        if len(self.events["kind"]) and int(self.events["kind"].max()) >= len(spec.kinds):
            raise ValueError(f"event kind {int(self.events['kind'].max())} is outside {spec.kinds}")

    def kind_names(self) -> list[str]:
        kinds = schema_of(self.schema).kinds
        return [kinds[code] for code in self.events["kind"]]

    def at(self, step: int) -> dict[str, np.ndarray]:
        """The events of one step, as columns."""
        if not 0 <= step < max(self.steps, 1):
            raise ValueError(f"step must be in [0, {self.steps}); got {step}")
        chosen = self.events["step"] == step
        return {name: column[chosen] for name, column in self.events.items()}

    def of_kind(self, kind: str) -> dict[str, np.ndarray]:
        kinds = schema_of(self.schema).kinds
        if kind not in kinds:
            raise ValueError(f"kind must be one of {kinds}; got {kind!r}")
        chosen = self.events["kind"] == kinds.index(kind)
        return {name: column[chosen] for name, column in self.events.items()}

    def describe(self, step: int) -> str:
        """One plain sentence about a step, made from the state: caption and live region of every figure."""
        return schema_of(self.schema).describe(self, step)

    def header(self) -> dict[str, Any]:
        return {"schema": self.schema, "method": self.method, "params": self.params, "subject": self.subject,
                "kinds": list(schema_of(self.schema).kinds), "steps": int(self.steps)}

    def save(self, path: str | os.PathLike) -> Path:
        """Write as safetensors with a JSON header; the file appears whole or not at all."""
        from safetensors.numpy import save_file

        path = Path(path)
        tensors = {f"array.{name}": np.ascontiguousarray(a) for name, a in self.arrays.items()}
        tensors |= {f"event.{name}": np.ascontiguousarray(a) for name, a in self.events.items()}
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(descriptor)
        try:
            save_file(tensors, temporary, metadata={"tutor.trace": json.dumps(self.header())})
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trace:
        """Read a saved trace. Raises `ValueError` for a file that is no trace, is cut off, or has an unknown schema."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as f:
                text = (f.metadata() or {}).get("tutor.trace")
                tensors = {name: f.get_tensor(name) for name in f.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable trace ({error}); record it again") from error
        if text is None:
            raise ValueError(f"{path} is a safetensors file but holds no trace (no 'tutor.trace' header)")
        head = json.loads(text)
        spec = schema_of(head["schema"])
        if tuple(head["kinds"]) != spec.kinds:
            raise ValueError(f"{path}: the kinds of schema {head['schema']!r} changed since it was recorded; record it again")
        arrays = {name[6:]: a for name, a in tensors.items() if name.startswith("array.")}
        events = {name[6:]: a for name, a in tensors.items() if name.startswith("event.")}
        return cls(head["schema"], head["method"], head["params"], head["subject"], arrays, events, head["steps"])


class Recorder:
    """Collects events while an algorithm runs; `None` in its place records nothing, and results stay the same.

    Methods write `if trace is not None: trace.event("evicted", pos=p, head=h)`.
    """

    def __init__(self, schema: str, *, method: str, params: dict | None = None, subject: dict | None = None):
        self._schema = schema_of(schema)
        self.method, self.params, self.subject = method, dict(params or {}), dict(subject or {})
        self._kind: list[int] = []
        self._step: list[int] = []
        self._columns: dict[str, list] = {}
        self.step = 0

    def event(self, kind: str, **values: float | int | bool) -> None:
        if kind not in self._schema.kinds:
            raise ValueError(f"kind must be one of {self._schema.kinds} in schema {self._schema.name!r}; got {kind!r}")
        n = len(self._kind)
        self._kind.append(self._schema.kinds.index(kind))
        self._step.append(self.step)
        for name, value in values.items():
            column = self._columns.setdefault(name, [])
            column.extend([_blank(value)] * (n - len(column)))   # a column may be born late
            column.append(value)

    def events(self, kind: str, **columns: Iterable) -> None:
        """Many events of one kind in the current step."""
        arrays = {name: np.asarray(column).tolist() for name, column in columns.items()}
        for row in zip(*arrays.values()):
            self.event(kind, **dict(zip(arrays, row)))

    def next_step(self) -> None:
        self.step += 1

    def finish(self, **arrays: np.ndarray) -> Trace:
        n = len(self._kind)
        events = {"kind": np.asarray(self._kind, np.int16), "step": np.asarray(self._step, np.int32)}
        for name, column in self._columns.items():
            filled = column + [_blank(column[0])] * (n - len(column))
            array = np.asarray(filled)
            events[name] = array.astype({"f": np.float32, "i": np.int32, "b": np.bool_}[array.dtype.kind])
        steps = max(self.step, self._step[-1] + 1 if n else 0)
        return Trace(self._schema.name, self.method, self.params, self.subject,
                     {name: np.asarray(a) for name, a in arrays.items()}, events, steps)


def _blank(value: float | int | bool) -> float | int | bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    return float("nan") if isinstance(value, (float, np.floating)) else -1
