"""Runs the exported pure functions of a figure's ES module under node, on arrays made by Python.

`Node(TokenStrip).call("topkMask", array, 3)` gives what JavaScript answers; NumPy arrays go over as typed arrays,
traces through the module's own `readTrace`; the function "identity" gives back what was read. `calls([...])` makes many
calls in one process.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutor.trace import Trace
from tutor.widgets.base import module_source
from tutor.widgets.pack import _storable, pack

RUNNER = """
import fs from "node:fs";
const m = await import(process.argv[2]);
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64")).buffer;
function take(value) {
  if (Array.isArray(value)) return value.map(take);
  if (value && typeof value === "object") {
    if ("$array" in value) return m.readArray(bytes(value.$array), { ...value, offset: 0 });
    if ("$trace" in value) return m.readTrace(value.$trace, bytes(value.buffer));
    if ("$number" in value) return Number(value.$number);
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, take(v)]));
  }
  return value;
}
function give(value) {
  if (ArrayBuffer.isView(value)) return Array.from(value, give);
  if (Array.isArray(value)) return value.map(give);
  if (typeof value === "number" && !Number.isFinite(value)) return { $number: String(value) };
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, give(v)]));
  return value === undefined ? null : value;
}
const find = (name) => (name === "identity" ? (x) => x : m[name]);
const calls = JSON.parse(fs.readFileSync(0, "utf8"));
console.log(JSON.stringify(calls.map(([name, args]) => give(find(name)(...args.map(take))))));
"""


def _send(value: Any) -> Any:
    if isinstance(value, Trace):
        headers, buffer = pack([value])
        return {"$trace": headers[0], "buffer": base64.b64encode(buffer).decode()}
    if isinstance(value, np.ndarray):
        array = _storable(value)
        return {"$array": base64.b64encode(array.tobytes()).decode(), "dtype": array.dtype.name, "shape": array.shape}
    if isinstance(value, dict):
        return {key: _send(item) for key, item in value.items()}
    return [_send(item) for item in value] if isinstance(value, (list, tuple)) else value


def _receive(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value["$number"].replace("Infinity", "inf")) if "$number" in value else {
            key: _receive(item) for key, item in value.items()}
    return [_receive(item) for item in value] if isinstance(value, list) else value


class Node:
    def __init__(self, figure: type | str):
        if shutil.which("node") is None:
            pytest.skip("the figures' arithmetic is tested under node, which is not installed (apt-get install nodejs)")
        self.source = module_source(figure if isinstance(figure, str) else figure.figure)

    def calls(self, calls: list[tuple]) -> list:
        """`[(function name, argument, …), …]` -> their results, in one process."""
        with tempfile.TemporaryDirectory() as folder:
            module, runner = Path(folder) / "figure.mjs", Path(folder) / "run.mjs"
            module.write_text(self.source, "utf-8")
            runner.write_text(RUNNER, "utf-8")
            sent = json.dumps([[name, [_send(a) for a in arguments]] for name, *arguments in calls])
            done = subprocess.run(["node", str(runner), module.as_uri()], input=sent, capture_output=True, text=True,
                                  timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return [_receive(value) for value in json.loads(done.stdout)]

    def call(self, name: str, *arguments: Any) -> Any:
        return self.calls([(name, *arguments)])[0]
