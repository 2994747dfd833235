"""Ask every outside address of built pages and Markdown files whether it is still there. Standard library only.

Usage: python scripts/check_links.py FOLDER_OR_FILE...

Leaves with 1 if an address does not exist (404, 410) or its host has no name; what merely refuses robots is listed.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ADDRESS = re.compile(r"""https?://[^\s"'<>`\\)\]]+""")
GONE = (404, 410)
EXAMPLES = ("example.", "localhost", "127.0.0.1", "w3.org", "schema.org")


def addresses(places: list[Path]) -> list[str]:
    """Every outside address in the pages, once."""
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.html")))]
    texts = (file.read_text(encoding="utf8") for file in files)
    found = {hit.rstrip(".,;").split("#")[0] for text in texts for hit in ADDRESS.findall(text)}
    return sorted(hit for hit in found if not any(word in hit for word in EXAMPLES))


def state(address: str, timeout: float = 20) -> str:
    """ "there", "gone: why", or "unclear: why"."""
    request = urllib.request.Request(address, headers={"User-Agent": "minilib link check"})
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return "there"
    except urllib.error.HTTPError as error:
        return f"{'gone' if error.code in GONE else 'unclear'}: {error.code}"
    except urllib.error.URLError as error:
        nameless = "name" in str(error.reason).lower()
        return f"{'gone' if nameless else 'unclear'}: {error.reason}"
    except (OSError, ValueError) as error:
        return f"unclear: {error}"


def main(places: list[Path]) -> int:
    wanted = addresses(places)
    with ThreadPoolExecutor(8) as pool:
        states = dict(zip(wanted, pool.map(state, wanted), strict=True))
    for address, said in states.items():
        if said != "there":
            print(f"{said:24} {address}")
    gone = [address for address, said in states.items() if said.startswith("gone")]
    print(f"minilib: {len(wanted)} addresses, {len(gone)} gone")
    return 1 if gone else 0


if __name__ == "__main__":
    sys.exit(main([Path(place) for place in sys.argv[1:]]))
