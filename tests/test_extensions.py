"""The book's own Sphinx extensions: the equation ledger sees every gap, the address has one source."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import house
import ledger

ROOT = Path(__file__).resolve().parent.parent


def test_every_equation_has_page_function_and_test():
    gaps = {entry.label: entry.gaps() for entry in ledger.collect(ROOT) if entry.gaps()}
    assert not gaps


def test_a_gap_is_seen(tmp_path):
    """A world of three equations: one complete, one untested, one that only a test knows."""
    for folder in ("book", "notebooks", "minilib", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "book" / "page.md").write_text("$$\na = b\n$$ (eq-x-whole)\n\n$$\nc = d\n$$ (eq-x-untested)\n")
    (tmp_path / "minilib" / "x.py").write_text('def f():\n    """Equations eq-x-whole, eq-x-untested."""\n')
    test = '@pytest.mark.equation("eq-x-whole")\n@pytest.mark.equation("eq-x-lost")\ndef test_f(): ...\n'
    (tmp_path / "tests" / "test_x.py").write_text(test)
    gaps = {entry.label: entry.gaps() for entry in ledger.collect(tmp_path)}
    assert gaps["eq-x-whole"] == []
    assert gaps["eq-x-untested"] == ["no test"]
    assert gaps["eq-x-lost"] == ["no page shows it", "no function names it"]


def test_no_address_no_buttons(tmp_path):
    """A reserved name is a placeholder; any other address is taken as it stands."""
    toml = tmp_path / "pyproject.toml"
    toml.write_text('[project.urls]\nRepository = "https://nobody.invalid/book"\n')
    assert house.repository_address(tmp_path) is None
    toml.write_text('[project.urls]\nRepository = "https://somebody.test/book"\n')
    assert house.repository_address(tmp_path) == "https://somebody.test/book"


def test_array_types_are_shortened():
    signature = "(images: ~numpy.ndarray[tuple[~typing.Any, ...], ~numpy.dtype[~numpy.uint8]], n: int)"
    assert house.shorten_types(None, "", "", None, None, signature, None) == ("(images: ndarray[uint8], n: int)", None)


def test_foreign_files_are_recognised():
    assert house.is_foreign(type("File", (), {"filename": "https://cdn.test/x.js"}))
    assert not house.is_foreign(type("File", (), {"filename": "_static/doctools.js"}))


CONF = """
import sys
sys.path.insert(0, {extensions!r})
extensions = ["sphinx.ext.autodoc", "myst_nb", "house"]
html_theme, nb_execution_mode = "sphinx_book_theme", "off"
html_theme_options = {{"launch_buttons": {{"notebook_interface": "jupyterlab"}}, "repository_branch": "main"}}
"""


def test_colab_button_opens_the_chapter_that_it_stands_on(tmp_path):
    """A book of one chapter, built with an address and without."""
    for folder in ("notebooks", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "conf.py").write_text(CONF.format(extensions=str(ROOT / "book" / "_ext")))
    (tmp_path / "index.md").write_text("# Book\n\n```{toctree}\nnotebooks/01_clip\n```\n")
    shutil.copy(ROOT / "notebooks" / "01_clip.ipynb", tmp_path / "notebooks")
    opened = {}
    for address in ("https://github.com/ada/book", "https://nobody.invalid/book"):
        (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
        subprocess.run([sys.executable, "-m", "sphinx", "-q", "-E", str(tmp_path), str(tmp_path / "out")], check=True,
                       capture_output=True)  # fmt: skip
        page = (tmp_path / "out" / "notebooks" / "01_clip.html").read_text()
        opened[address] = re.findall(r'href="(https://colab[^"]+)"', page)
    there, nowhere = opened.values()
    assert set(there) == {"https://colab.research.google.com/github/ada/book/blob/main/notebooks/01_clip.ipynb"}
    assert nowhere == []
