"""Write the repository's address wherever it must stand: ``python scripts/set_address.py URL``, or ``--check``.

pyproject.toml is the source; Colab buttons and repository links are made from it when the book is built. Copies stand
where a file is read without the others: the setup cell of each chapter and CITATION.cff. Only the standard library is
used, so that a deploy job can run this first.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
RESERVED = ".invalid"  # a name that nobody can own: there is no address yet
IN_PYPROJECT = re.compile(r'^Repository = ".*"$', re.MULTILINE)
IN_NOTEBOOK = re.compile(r'ADDRESS = \\"[^"\\]*\\"')
IN_CITATION = re.compile(r"^repository-code: .*\n", re.MULTILINE)


def current(root: Path) -> str:
    """The address in pyproject.toml; an empty text while it is the placeholder."""
    address = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf8"))["project"]["urls"]["Repository"]
    return "" if (urlsplit(address).hostname or "").endswith(RESERVED) else address


def checked(address: str) -> str:
    """The address without a closing slash or ``.git``; ValueError unless it is https, a host, and a path."""
    parts = urlsplit(address.strip())
    plain = re.fullmatch(r"https://[\w.-]+(:\d+)?(/[\w.~-]+)+/?", address.strip())
    if not plain or parts.username or (parts.hostname or "").endswith(RESERVED):
        raise ValueError(f"URL must look like https://host/owner/name, without user, query or anchor; not {address!r}")
    return address.strip().rstrip("/").removesuffix(".git")


def copies(root: Path, address: str) -> dict[Path, str]:
    """Each file that carries a copy, with the text that it should have."""
    found = {path: path.read_text(encoding="utf8") for path in sorted((root / "notebooks").glob("*.ipynb"))}
    wanted = {}
    for path, text in found.items():
        wanted[path], number = IN_NOTEBOOK.subn(lambda _: f'ADDRESS = \\"{address}\\"', text)
        json.loads(wanted[path])
        if number != 1:
            raise ValueError(f"{path.name} must set ADDRESS once, in its setup cell; it does so {number} times")
    citation = root / "CITATION.cff"
    text = IN_CITATION.sub("", citation.read_text(encoding="utf8"))
    line = f'repository-code: "{address}"\n' if address else ""
    return wanted | {citation: re.sub(r"^(license: )", line + r"\1", text, flags=re.MULTILINE)}


def differing(root: Path) -> list[str]:
    """Names of the files whose copy differs from pyproject.toml's address."""
    wanted = copies(root, current(root))
    return [path.name for path, text in wanted.items() if path.read_text(encoding="utf8") != text]


def set_address(root: Path, address: str) -> None:
    """Write the address everywhere; nothing is written when something is wrong."""
    address = checked(address)
    wanted, source = copies(root, address), root / "pyproject.toml"
    text, number = IN_PYPROJECT.subn(lambda _: f'Repository = "{address}"', source.read_text(encoding="utf8"))
    if number != 1:
        raise ValueError(f'pyproject.toml must hold one line Repository = "..."; it holds {number}')
    for path, content in (wanted | {source: text}).items():
        path.write_text(content, encoding="utf8")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0]:
        print("address: which one? make address URL=https://host/owner/name", file=sys.stderr)
        return 2
    try:
        if arguments == ["--check"]:
            wrong = differing(ROOT)
            print(f"address: {current(ROOT) or 'none yet'}; differing: {', '.join(wrong) or 'none'}")
            return 1 if wrong else 0
        set_address(ROOT, arguments[0])
    except ValueError as error:
        print(f"address: {error}", file=sys.stderr)
        return 2
    print(f"address: {current(ROOT)} stands in pyproject.toml, the chapters' setup cells and CITATION.cff")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
