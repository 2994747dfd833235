"""The equation ledger: complete for the book, and able to see a gap."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("ledger", ROOT / "book" / "_ext" / "ledger.py")
ledger = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ledger)


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
