"""Build the book into _build/html, running the chapters that changed.

Chapters run as a reader runs them: each in an empty folder, with minilib installed from its wheel and not from the
checkout. A chapter's outputs are cached by its code. They also depend on the library, so when minilib or its weights
change, the cache is dropped and every chapter runs again. With ``--if-needed``, do nothing when the built book is newer
than all its sources.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
LIBRARY_MARK = BUILD / "library.sha256"
DONE_MARK = BUILD / "book.done"
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
}  # many small products: threads only wait for each other
BUILD_COMMAND = ["build", ".", "--toc", "book/_toc.yml", "-W", "-n", "--keep-going"]


def files(*folders: str) -> list[Path]:
    """Every source file below the given folders."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*")))
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"]


def library_hash() -> str:
    """What the chapters' outputs depend on besides their own code."""
    digest = hashlib.sha256()
    for path in [*files("minilib"), ROOT / "requirements.lock"]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def up_to_date() -> bool:
    """Whether the last build succeeded and no source is newer than it."""
    if not DONE_MARK.exists() or not (BUILD / "html" / "index.html").exists():
        return False
    sources = [*files("book", "notebooks", "minilib", "tests"), ROOT / "_config.yml", ROOT / "pyproject.toml"]
    built = DONE_MARK.stat().st_mtime
    return all(path.stat().st_mtime <= built for path in sources)


def installed(folder: Path) -> dict[str, str]:
    """Put minilib's wheel into a folder of its own; the environment in which a chapter finds that and no other."""
    shutil.rmtree(folder, ignore_errors=True)
    pack = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(pack, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    put = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*put, "--target", str(folder / "site"), str(wheel)], check=True)
    env = QUIET | os.environ | {"PYTHONPATH": str(folder / "site")}
    with tempfile.TemporaryDirectory() as empty:
        ask = [sys.executable, "-c", "import minilib; print(minilib.__file__)"]
        found = subprocess.run(ask, cwd=empty, env=env, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(found).is_relative_to(folder / "site"):
        raise RuntimeError(f"chapters would import {found}, not the wheel in {folder}: another minilib comes first")
    return env


def main() -> int:
    if "--if-needed" in sys.argv[1:] and up_to_date():
        print("minilib: the book in _build/html is up to date")
        return 0
    BUILD.mkdir(exist_ok=True)
    DONE_MARK.unlink(missing_ok=True)
    library, started = library_hash(), time.time()
    if not LIBRARY_MARK.exists() or LIBRARY_MARK.read_text() != library:
        print("minilib: building the book; every chapter runs (some ten minutes on two cores)", flush=True)
        for stale in (".jupyter_cache", "html", ".doctrees"):
            shutil.rmtree(BUILD / stale, ignore_errors=True)
        LIBRARY_MARK.write_text(library)
    else:
        print("minilib: building the book; only changed chapters run", flush=True)
    code = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    env = installed(BUILD / "wheel")
    failed = subprocess.run([sys.executable, "-c", code, *BUILD_COMMAND], cwd=ROOT, env=env).returncode
    if failed:  # what Sphinx has read it would not read again, and a broken chapter would pass the next time
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        print("minilib: the book did not build; the first warning or error above says why", file=sys.stderr)
        return 1
    if subprocess.run([sys.executable, str(ROOT / "scripts" / "check_numbers.py")], cwd=ROOT, env=env).returncode:
        return 1
    DONE_MARK.touch()
    os.utime(DONE_MARK, (started, started))  # a source changed while the book was being built is newer
    page = BUILD / "html" / "index.html"
    print(f"minilib: the book stands after {time.time() - started:.0f} s: open {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
