"""The repository's address: one source, the same copies everywhere, nothing written when something is wrong."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import house
import nbformat
import pytest
import set_address

ROOT = Path(__file__).resolve().parent.parent
URL = "https://somewhere.test/owner/book"


@pytest.fixture
def project(tmp_path) -> Path:
    """The files that carry an address, in a folder of their own."""
    (tmp_path / "notebooks").mkdir()
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), ROOT / "pyproject.toml", ROOT / "CITATION.cff"]:
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def text_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf8") for path in folder.rglob("*") if path.is_file()}


def test_copies_here_agree_with_their_source():
    assert set_address.differing(ROOT) == []


def test_address_is_written_everywhere(project):
    set_address.set_address(project, URL + ".git")
    assert set_address.current(project) == house.repository_address(project) == URL
    assert set_address.differing(project) == []
    assert all(text.count(URL) == 1 for text in text_of(project).values())
    for path in (project / "notebooks").glob("*.ipynb"):
        book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        names = {}
        (line,) = (line for cell in book.cells for line in cell.source.splitlines() if line.startswith("ADDRESS ="))
        exec(line, names)
        assert names["ADDRESS"] == URL


def test_another_address_leaves_nothing_of_the_first(project):
    """Moving twice is the same as moving once."""
    set_address.set_address(project, URL)
    once = text_of(project)
    set_address.set_address(project, "https://elsewhere.test/x")
    assert not any(URL in text for text in text_of(project).values())
    set_address.set_address(project, URL)
    assert text_of(project) == once


def test_a_stray_copy_is_found(project):
    set_address.set_address(project, URL)
    path = next((project / "notebooks").glob("*.ipynb"))
    path.write_text(path.read_text().replace(URL, "https://fork.test/owner/book"))
    assert set_address.differing(project) == [path.name]


@pytest.mark.parametrize(
    "url",
    ["", "http://a.test/b", "git@a.test:b/c", "https://user@a.test/b", "https://a.test", "https://a.test/b?c=d",
     "https://a.test/b\"c", "https://a.invalid/b", "https://a.test/b c"],
)  # fmt: skip
def test_what_is_no_address_changes_nothing(project, url):
    before = text_of(project)
    with pytest.raises(ValueError, match="https://host/owner/name"):
        set_address.set_address(project, url)
    assert text_of(project) == before


def test_a_chapter_without_setup_cell_is_named(project):
    path = project / "notebooks" / "99_new.ipynb"
    path.write_text(json.dumps({"cells": []}))
    before = text_of(project)
    with pytest.raises(ValueError, match="99_new"):
        set_address.set_address(project, URL)
    assert text_of(project) == before


def test_the_page_is_built_with_the_repositorys_own_address():
    """Before the book is built, and from nothing that an outsider could set."""
    yaml = pytest.importorskip("yaml")
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf8"))
    commands = [step["run"] for step in flow["jobs"]["build"]["steps"] if "run" in step]
    named = 'make address URL="$GITHUB_SERVER_URL/$GITHUB_REPOSITORY"'
    assert commands.index(named) < commands.index("make book")


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_may_do_little_and_pin_what_they_use(path):
    yaml = pytest.importorskip("yaml")
    flow = yaml.safe_load(path.read_text(encoding="utf8"))
    assert flow["permissions"] == {"contents": "read"}
    for job in flow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        publishes = job is flow["jobs"].get("publish") and path.stem == "release"  # a release is made in the repository
        assert set(job.get("permissions", {})) <= ({"contents"} if publishes else {"pages", "id-token"})
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used), used


def test_command_says_what_is_missing():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "set_address.py", ""], capture_output=True, text=True)
    assert done.returncode == 2 and "make address URL=" in done.stderr
