"""The house's rules: who may import whom, how large a room may grow, what must not be written anywhere."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path

import pytest

import minilib

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for path in (ROOT / "minilib").glob("*.py") if path.name != "__init__.py")

GROUND = {"world", "drawing"}
FIRST_FLOOR = {"models", "features", "training", "evaluate", "metadata"}
METHODS = {"gda", "curate", "diva"}
GAUSSIANS = {"gaussian", "loo", "beyond"}  # the inner rooms of gda; those of curate follow below
WORKS = {
    "keys",
    "pools",
    "runs",
    "steps",
    "pipeline",
    "scale",
    "report",
    "cli",
    "cli_diva",
    "checkpoints",
    "pictures",
    "assets",
    "download",
    "hub",
    "zoo",
    "datasets",
    "published",
    "trials",
    "reproduce",
    "cli_models",
    "cli_reproduce",
    "journal",
    "loop",
    "mmvp",
}  # files: no chapter derives them
PARTS = ("clip", "adapt", "beyond", "feed", "see")
COURSE = {"judges", "quiz", "exercises"} | {f"exercises_{part}" for part in PARTS}
MAY_IMPORT = {
    "drawing": set(),
    "world": {"drawing"},
    "plotting": set(),
    "frames": set(),
    "towers": set(),
    "loop": set(),
    "journal": set(),
    "lora": set(),
    "feedback": GROUND | {"models", "towers", "training"},
    "evaluate": GROUND,
    "judges": {"evaluate"},
    **{f"exercises_{part}": FIRST_FLOOR | METHODS | {"judges", "world"} for part in PARTS},
    "exercises": {"judges"} | {f"exercises_{part}" for part in PARTS},
    "quiz": set(),
    "metadata": GROUND,
    "models": GROUND | {"checkpoints"},
    "checkpoints": set(),
    "features": GROUND | {"models"},
    "training": GROUND | {"models", "features", "evaluate", "loop"},
    "gaussian": set(),
    "loo": {"gaussian"},
    "beyond": {"gaussian", "evaluate"},
    **{method: GROUND | FIRST_FLOOR | {"towers", "loop", "journal", "lora", "feedback"} for method in METHODS},
    "gda": GROUND | FIRST_FLOOR | GAUSSIANS,
    "ngram": set(),
    "matching": {"metadata", "ngram"},
    "corpus": {"metadata"},
    "curate": {"metadata", "matching"},
    "keys": set(),
    "pools": {"keys"},
    "report": {"plotting", "pools"},
    "runs": {"metadata", "matching", "pools"},
    "steps": {"curate", "pools", "runs"},
    "pipeline": {"keys", "metadata", "pools", "report", "runs", "steps"},
    "scale": {"curate", "pipeline", "pools", "runs", "steps"},
    "mmvp": GROUND | FIRST_FLOOR | {"towers"},
    "exam": GROUND | FIRST_FLOOR | {"towers", "mmvp", "gda"},
    "arms": GROUND | FIRST_FLOOR | {"diva", "loop"},
    "cli": GROUND
    | FIRST_FLOOR
    | METHODS
    | {"plotting", "matching", "towers", "pools", "runs", "pipeline", "scale"}
    | {"cli_diva", "cli_models", "cli_reproduce"},
    "cli_diva": GROUND | FIRST_FLOOR | {"arms", "pictures", "diva", "exam", "mmvp", "towers"},
    "pictures": set(),
    "datasets": {"pictures"},
    "download": set(),
    "hub": {"download"},
    "assets": {"download", "hub"},
    "zoo": {"assets", "hub", "models"},
    "published": set(),
    "trials": GROUND | FIRST_FLOOR | {"datasets", "gda", "published"},
    "reproduce": GROUND
    | FIRST_FLOOR
    | {"curate", "datasets", "exam", "mmvp", "pools", "published", "runs", "steps", "trials", "zoo"},
    "cli_models": {"assets", "zoo"},
    "cli_reproduce": FIRST_FLOOR | {"assets", "cost", "datasets", "mmvp", "pools", "published", "reproduce", "zoo"},
    "cost": {"towers", "models"},
}
# Written in pieces, so that this file may be searched like the others.
REGISTRIES = [
    ".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("anaconda", "org"))
]
MACHINE_PATHS = ["/" + folder + "/" for folder in ("work", "root", "opt", "home")] + ["shared" + "/"]
PLACEHOLDER = ".".join(("example", "invalid"))


@cache
def tracked() -> tuple[Path, ...]:
    """The project's text files: what git tracks, or everything outside build folders where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        hidden = {
            ".venv",
            ".git",
            "_build",
            "__pycache__",
            ".pytest_cache",
            ".ruff_cache",
            ".mypy_cache",
            ".hypothesis",
        }
        paths = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return tuple(path for path in paths if path.is_file() and path.suffix not in {".png", ".safetensors", ".npz"})


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} if node.module != "minilib" else {f"minilib.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_run_downward(path):
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("minilib.")} - {"__version__"}
    assert path.stem in MAY_IMPORT, f"minilib/{path.name} has no floor yet: give it one in MAY_IMPORT"
    assert rooms <= MAY_IMPORT[path.stem], f"minilib/{path.name} may not import {rooms - MAY_IMPORT[path.stem]}"


def test_plotting_knows_arrays_only():
    allowed = {"numpy", "matplotlib", "seaborn"} | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in imported(ROOT / "minilib" / "plotting.py")} <= allowed


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    text = path.read_text(encoding="utf8")
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, holders) and ast.get_docstring(node)]
    prose = {line for node in nodes for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in prose]
    return len([line for line in lines if line and not line.startswith("#")])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_stay_readable(path):
    """One sentence of purpose, and no more than can be read in a sitting."""
    assert code_lines(path) <= 350, f"{path.name} has {code_lines(path)} lines of code: split it"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
    assert docstring.split("\n\n")[0].rstrip().endswith("."), f"{path.name} does not open with a sentence"


def test_library_can_be_read_from_end_to_end():
    """What the chapters derive, and apart from it what carries files and commands, and the answers to exercises."""
    works = sum(code_lines(path) for path in MODULES if path.stem in WORKS)
    course = sum(code_lines(path) for path in MODULES if path.stem in COURSE)
    assert sum(map(code_lines, MODULES)) - works - course < 4_400 and works < 4_000


def test_curation_starts_without_torch():
    code = "import sys, minilib, minilib.curate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("phrase", [*REGISTRIES, *MACHINE_PATHS])
def test_nothing_points_at_one_machine_or_registry(phrase):
    pattern = re.compile(r"(?<![\w./~-])" + re.escape(phrase) if phrase.startswith("/") else re.escape(phrase))
    found = [str(path.relative_to(ROOT)) for path in tracked() if pattern.search(path.read_text(encoding="utf8"))]
    assert not found, f"{phrase} stands in {found}"


def test_address_stands_in_one_place():
    """pyproject.toml has the address, or a placeholder nobody can own; copies that a command makes have the same."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert list(urls) == ["Repository"]
    address = urls["Repository"]
    copies = {"pyproject.toml"}
    if PLACEHOLDER not in address:
        copies |= {"CITATION.cff", *(f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb"))}
    needle = PLACEHOLDER if PLACEHOLDER in address else address
    found = {path.relative_to(ROOT).as_posix() for path in tracked() if needle in path.read_text(encoding="utf8")}
    assert found == copies


def test_lock_holds_names_versions_and_hashes_only():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = re.compile(r"[\w.-]+==[\w.!+-]+( ; [\w\s'.<>=!()-]+)?( \\)?")
    hashed = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    odd = [line for line in lines if not (line.startswith("#") or pinned.fullmatch(line) or hashed.fullmatch(line))]
    assert not odd, odd[:5]


def test_bounds_are_loose():
    """Colab keeps its own torch; exact versions belong in requirements.lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    assert not [name for name in [*project["dependencies"], *extras] if "==" in name or " @ " in name]


def test_ci_runs_what_the_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    commands = re.search(r"```bash\n(.*?)```", readme, re.DOTALL).group(1).split("\n")
    commands = [command.split("  #")[0].strip() for command in commands if command.strip()]
    ci = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert commands == ["make book", "make test"]
    assert [line for line in ci if line in [*commands, "make check"]] == ["make book", "make check", "make test"]
    assert ci[-1] == "make test", "pytest's closing line must be the last one printed"


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {minilib.__version__}\n" in citation
    assert f"## {minilib.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_carries_code_and_weights_and_nothing_else(tmp_path):
    pytest.importorskip("hatchling", reason="the extra dev has it")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("minilib-")}
    kinds = (".py", ".safetensors", ".json", ".md")
    wanted = [path for path in (ROOT / "minilib").rglob("*") if path.suffix in kinds and path in tracked()]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= names
    assert all(name.startswith("minilib/") for name in names)
