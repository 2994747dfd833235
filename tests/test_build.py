"""The book's builder: what failed is read again, and what changed during a build is newer than it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """The script, in a project of its own whose Sphinx is a stand-in."""
    spec = importlib.util.spec_from_file_location("build_book", ROOT / "scripts" / "build_book.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name in ("book", "notebooks", "minilib", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "source.txt").write_text(name)
    for name in ("_config.yml", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_text(name)
    build = tmp_path / "_build"
    places = {"ROOT": tmp_path, "BUILD": build, "LIBRARY_MARK": build / "library.sha256", "DONE_MARK": build / "done"}
    for name, value in places.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script.sys, "argv", ["build_book.py"])
    return script


def sphinx(builder, monkeypatch, code, then=lambda: None):
    def run(*args, **options):
        for folder in (".doctrees", "html"):
            (builder.BUILD / folder).mkdir(exist_ok=True)
        (builder.BUILD / "html" / "index.html").write_text("page")
        then()
        return subprocess.CompletedProcess(args, code)

    monkeypatch.setattr(builder.subprocess, "run", run)
    monkeypatch.setattr(builder, "installed", lambda folder: {})


def test_chapters_run_in_an_empty_folder_with_the_wheel(builder, monkeypatch, tmp_path):
    """Sphinx is given an environment in which minilib is the wheel's, wherever Python is started."""
    yaml = pytest.importorskip("yaml")
    monkeypatch.setattr(builder, "ROOT", ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as make sets it
    env = builder.installed(tmp_path / "wheel")
    ask = [sys.executable, "-c", "import minilib.world; print(minilib.world.__file__)"]
    (tmp_path / "empty").mkdir()
    found = subprocess.run(ask, cwd=tmp_path / "empty", env=env, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()) == tmp_path / "wheel" / "site" / "minilib" / "world.py"
    assert yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]["run_in_temp"] is True


def test_another_minilib_in_front_stops_the_build(builder, monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "ROOT", ROOT)
    real = subprocess.run
    other = subprocess.CompletedProcess([], 0, stdout="/elsewhere/minilib/__init__.py\n")
    monkeypatch.setattr(
        builder.subprocess, "run", lambda args, **more: other if "capture_output" in more else real(args, **more)
    )
    with pytest.raises(RuntimeError, match=r"elsewhere.*another minilib"):
        builder.installed(tmp_path / "wheel")


def test_a_failed_build_is_read_again_from_the_start(builder, monkeypatch):
    sphinx(builder, monkeypatch, code=1)
    assert builder.main() == 1 and not builder.up_to_date()
    assert not (builder.BUILD / ".doctrees").exists(), "Sphinx would not look at the broken chapter again"


def test_a_finished_build_is_up_to_date_until_a_source_changes(builder, monkeypatch):
    sphinx(builder, monkeypatch, code=0)
    assert builder.main() == 0 and builder.up_to_date()
    later = builder.DONE_MARK.stat().st_mtime + 1
    builder.os.utime(builder.ROOT / "notebooks" / "source.txt", (later, later))
    assert not builder.up_to_date()


def test_a_source_that_changes_during_the_build_is_newer(builder, monkeypatch):
    chapter = builder.ROOT / "notebooks" / "source.txt"
    sphinx(builder, monkeypatch, code=0, then=lambda: chapter.write_text("edited while its old text ran"))
    assert builder.main() == 0 and not builder.up_to_date()
