"""What the theme would fetch or assume, put in order: one address, no other origin.

- The repository's address is read from pyproject.toml, its source. While it is the placeholder, pages carry no
  repository link and no Colab button; once it is real, both appear.
- Scripts and styles from other origins are dropped, and thebe, which starts kernels on a stranger's server, with them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ARRAY = re.compile(r"[~.\w]*ndarray\[tuple\[[~.\w]*Any, \.\.\.\], [~.\w]*dtype\[[~.\w]*?(\w+)\]\]")
PLACEHOLDER_ENDING = ".invalid"  # reserved: nobody can own such a name
THEBE_SETTINGS = re.compile(
    r'<script type="text/x-thebe-config">.*?</script>\s*(<script>kernelName = .*?</script>)?', re.DOTALL
)


def repository_address(root: Path) -> str | None:
    """The address in pyproject.toml, or None while it is the placeholder."""
    address = tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    return None if (urlsplit(address).hostname or "").endswith(PLACEHOLDER_ENDING) else address


def set_buttons(app: Any, config: Any) -> None:
    """Repository link and Colab button when there is an address, neither when there is none."""
    options = config.html_theme_options
    address = repository_address(Path(app.srcdir))
    options["repository_url"] = address or ""
    options["use_repository_button"] = address is not None
    buttons = dict(options.get("launch_buttons") or {})
    buttons["colab_url"] = "https://colab.research.google.com" if address else ""
    options["launch_buttons"] = buttons


def is_foreign(file: Any) -> bool:
    """Whether a script or style of a page comes from another origin, or is thebe's."""
    name = str(getattr(file, "filename", None) or "")
    body = getattr(file, "attributes", {}).get("body") or ""
    return "://" in name or name.startswith("//") or "thebe" in name + body


def drop_foreign_files(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Keep only what the site itself serves."""
    for key in ("script_files", "css_files"):
        if key in context:
            context[key] = [file for file in context[key] if not is_foreign(file)]
    context["body"] = THEBE_SETTINGS.sub("", context.get("body") or "")


def skip_borrowed(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave scikit-learn's generated ``set_..._request`` methods out of the API page."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def shorten_types(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> Any:
    """Write an array's type as a reader says it: ``ndarray[uint8]``."""
    return tuple(ARRAY.sub(r"ndarray[\1]", text) if text else text for text in (signature, returns))


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", set_buttons, priority=100)
    app.connect("html-page-context", drop_foreign_files, priority=900)
    app.connect("autodoc-process-signature", shorten_types)
    app.connect("autodoc-skip-member", skip_borrowed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
