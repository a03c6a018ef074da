"""Plant each bug in a copy of the package and expect its tests to turn red.

A bug that survives is a hole in the suite. The unmutated selections are run first: a test that is red anyway proves
nothing. Selection by commit: with `--count 10`, another ten for every commit.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

import tests.mutants
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
NOT_MUTANTS = {"mutant", "run"}
LIMIT_S = 300


def all_mutants() -> list[Mutant]:
    found: list[Mutant] = []
    for module in pkgutil.iter_modules(tests.mutants.__path__):
        if module.name not in NOT_MUTANTS:
            found += importlib.import_module(f"tests.mutants.{module.name}").MUTANTS
    names = [m.name for m in found]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"mutant names are used twice: {sorted(repeated)}")
    return found


def copy_project(target: Path) -> None:
    """What a mutant may touch is copied; data and notebooks are linked, nothing writes to them."""
    ignore = shutil.ignore_patterns("__pycache__", "work", "_build")
    for folder in ("tutor", "tests", "benchmarks", "book"):
        shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
    for name in ("data", "notebooks", "pyproject.toml"):
        (target / name).symlink_to(ROOT / name)


def pytest_in(folder: Path, selection: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("CI", None)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:randomly", *shlex.split(selection)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def plant(mutant: Mutant, folder: Path) -> None:
    path = folder / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"mutant {mutant.name}: its text occurs {source.count(mutant.old)} times in {mutant.file}, must be once; "
            "the code moved on: update the mutant"
        )
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")


def caught(mutant: Mutant) -> tuple[bool, str]:
    """True when the tests turn red with the bug planted (exit 1: tests ran and failed; an import error is no catch)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy_project(folder)
        plant(mutant, folder)
        try:
            done = pytest_in(folder, mutant.tests)
        except subprocess.TimeoutExpired:
            return True, "ran into the time limit"  # an endless loop is caught, too
    return done.returncode == 1, done.stdout[-1500:] + done.stderr[-500:]


def rotating(mutants: list[Mutant], count: int) -> list[Mutant]:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    start = int(done.stdout.strip()[:8] or "0", 16) if done.returncode == 0 else 0
    return [mutants[(start * count + i) % len(mutants)] for i in range(min(count, len(mutants)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="how many, chosen by the current commit (0: all)")
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    chosen = [m for m in all_mutants() if args.only in m.name]
    if not chosen:
        raise ValueError(f"no mutant has {args.only!r} in its name")
    if args.count:
        chosen = rotating(chosen, args.count)

    selections = sorted({m.tests for m in chosen})
    survivors: list[str] = []
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(args.jobs) as pool:
        clean = Path(place)
        copy_project(clean)
        for selection, done in zip(
            selections,
            tqdm(pool.map(lambda s: pytest_in(clean, s), selections), total=len(selections), desc="selections without a bug"),
        ):
            if done.returncode:
                print(f"{selection} is red (exit {done.returncode}) without any bug:\n{done.stdout[-2000:]}{done.stderr[-800:]}")
                return 1
        for mutant, (red, output) in zip(chosen, tqdm(pool.map(caught, chosen), total=len(chosen), desc="planted bugs")):
            if not red:
                survivors.append(mutant.name)
                print(f"SURVIVED {mutant.name} ({mutant.file}):\n{output}")
    print(f"{len(chosen) - len(survivors)} passed, {len(survivors)} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
