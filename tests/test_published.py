"""Published figures: the shipped table against sums done by hand; rows of runs, their digest, and the ledger's page."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import reproduction

from minilib import published
from minilib.published import AVERAGE, ELEVEN

ROOT = Path(__file__).resolve().parent.parent
FIGURES = published.read_published()


def values(task: str, metric: str, backbone: str | None = None, shots: str | None = None) -> dict[str, float]:
    """Data set -> value, without averages."""
    return {
        f.dataset: f.value
        for f in FIGURES
        if (f.task, f.metric) == (task, metric) and f.dataset != AVERAGE
        and backbone in (None, f.backbone) and shots in (None, f.shots)
    }  # fmt: skip


def row(**changed) -> dict:
    one = {
        "metric": "top1", "unit": "%", "value": 64.5, "sd": 0.5, "by_seed": [64.0, 64.5, 65.0],
        "interval": [63.26, 65.74], "interval_kind": "t over 3 seeds", "paper": None, "reference_log": 66.4,
        "difference": -1.9, "difference_from": "reference log",
    }  # fmt: skip
    made = {
        "task": "gda-fewshot", "dataset": "dtd", "backbone": "RN50", "shots": 16, "results": [one], "protocol": "words",
        "settings": {}, "seeds": [1, 2, 3], "hardware": "a card", "date": "2026-01-02", "versions": {}, "commit": None,
    }  # fmt: skip
    return made | changed


# --- the table --------------------------------------------------------------------------------------------------------


def test_numbers_of_rows():
    """By hand: RN50 has 11 sets x 5 shots, a mean and a spread each, and ImageNet at 32 and 64; 3 further backbones at
    16 shots; the average of RN50 at 5 shots and of ViT-B/16: 110 + 2 + 33 + 6. Base-to-new 11 x 3 and 4 averages.
    Robustness 2 backbones x 5 worlds. MMVP: 8 models before and after, 2 x 9 patterns, 3 later works."""
    found = Counter(figure.task for figure in FIGURES)
    assert found == {
        "gda-fewshot": 151, "gda-base-to-new": 37, "gda-robustness": 10, "gda-longtail": 2, "gda-unsupervised": 1,
        "diva-mmvp": 37, "curate-stats": 17,
    }  # fmt: skip
    assert set(found) == set(published.TASKS)


@pytest.mark.parametrize("shots, average", [("1", 62.19), ("2", 66.20), ("4", 69.77), ("8", 73.31), ("16", 76.05)])
def test_averages_of_few_shot_logs(shots, average):
    """The published averages come out of the eleven rows, to the two digits that are printed."""
    rows = values("gda-fewshot", "top1", "RN50", shots)
    assert set(rows) == set(ELEVEN)
    assert sum(rows.values()) / 11 == pytest.approx(average, abs=0.005)
    [stated] = [f for f in FIGURES if f.key == ("gda-fewshot", AVERAGE, "RN50", shots)]
    assert stated.value == average


def test_averages_of_base_to_new():
    """The mean of the eleven H and the H of the two means differ: 78.72 and 78.97."""
    base, new, h = (values("gda-base-to-new", metric) for metric in ("base", "new", "H"))
    means = [sum(part.values()) / 11 for part in (base, new, h)]
    assert [round(mean, 2) for mean in means] == [83.96, 74.53, 78.72]
    assert 2 / (1 / means[0] + 1 / means[1]) == pytest.approx(78.97, abs=0.005)
    stated = {f.metric: f.value for f in FIGURES if f.key == ("gda-base-to-new", AVERAGE, "ViT-B/16", "16")}
    assert stated == {"base": 83.96, "new": 74.53, "H": 78.72, "H of averages": 78.97}
    for name, value in h.items():
        assert value == pytest.approx(2 / (1 / base[name] + 1 / new[name]), abs=0.002), name


def test_architecture_average():
    rows = values("gda-fewshot", "top1", "ViT-B/16", "16")
    assert len(rows) == 11 and sum(rows.values()) / 11 == pytest.approx(81.85, abs=0.005)


def test_robustness_is_that_of_imagenets_few_shots():
    """Both logs train on 16 shots of ImageNet: their own test accuracies lie within a tenth of a point."""
    for backbone in ("ViT-B/16", "ViT-B/32"):
        carried, own = (values(t, "top1", backbone, "16")["imagenet"] for t in ("gda-robustness", "gda-fewshot"))
        assert abs(carried - own) < 0.1


@pytest.mark.parametrize("when, pairs", [("before", 26), ("after", 35)])
def test_nine_patterns_make_the_score(when, pairs):
    """Each pattern is a whole number of 15 pairs; added up they are 26 and 35 of 135, which is 19.3 and 25.9 %."""
    solved = [f.value * 15 / 100 for f in FIGURES if f.metric.startswith(f"{when}, ")]
    assert len(solved) == 9 and all(abs(x - round(x)) < 0.01 for x in solved)
    assert sum(map(round, solved)) == pairs
    [score] = [f.value for f in FIGURES if f.backbone == "OpenAI ViT-L/14" and f.metric == when]
    assert 100 * pairs / 135 == pytest.approx(score, abs=0.05)


def test_metadata_adds_up():
    """The four sources are the 500,000 entries; 5.35 of 5.67 billion matches are 94.4 %; 3.5 matches a text."""
    found = {f.metric: f.value for f in FIGURES if f.task == "curate-stats"}
    assert sum(v for k, v in found.items() if k.startswith("entries: ")) == found["entries"] == 500_000
    share = found["matches in head entries"] / found["matches"]
    assert 100 * share == pytest.approx(found["share in head entries"], abs=0.05)
    assert found["matches"] / found["texts"] == pytest.approx(found["matches a text"], abs=0.05)


def test_percentages_are_percentages():
    assert all(0 < f.value < 100 for f in FIGURES if f.unit in ("%", "points"))
    assert {f.metric.endswith(" sd") or f.metric == "gain" for f in FIGURES if f.unit == "points"} == {True}


@pytest.mark.parametrize(
    "line, message",
    [
        ("nothing,dtd,RN50,1,top1,5,%,paper,x", "task must be one of gda-fewshot"),
        ("gda-fewshot,dtd,RN50,1,top1,5,percent,paper,x", "unit must be one of %"),
        ("gda-fewshot,dtd,RN50,1,top1,5,%,memory,x", "origin must be one of paper"),
        ("gda-fewshot,dtd,RN50,1,top1,many,%,paper,x", "value must be a number; not 'many'"),
        ("gda-fewshot,dtd,RN50,1,top1,5,%,paper,x\ngda-fewshot,dtd,RN50,1,top1,6,%,paper,y", "line 3: .* stands twice"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, line, message):
    path = tmp_path / "published.csv"
    path.write_text(f"task,dataset,backbone,shots,metric,value,unit,origin,source\n{line}\n")
    with pytest.raises(ValueError, match=message):
        published.read_published(path)


def test_a_table_with_other_columns_is_refused(tmp_path):
    (tmp_path / "published.csv").write_text("task,value\n")
    with pytest.raises(ValueError, match=r"must have the columns .*'source'"):
        published.read_published(tmp_path / "published.csv")


def test_variants_stand_beside_the_plain_figure():
    """A later work keeps its own figure, a readout of ours takes the paper's, a pattern's is not the whole's."""
    key = ("diva-mmvp", "mmvp-vlm", "OpenAI ViT-L/14", "")
    wanted = {"after": 25.9, "after (pooled+local)": 25.9, "after (DCR)": 33.3, "after, count": 6.7}
    assert {metric: published.beside(FIGURES, key, metric)["paper"].value for metric in wanted} == wanted
    assert published.beside(FIGURES, key, "gain") == {}


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_comes_back(tmp_path):
    path = published.write_row(row(), tmp_path / "new")
    [back] = published.read_rows(tmp_path / "new")
    assert {name: back[name] for name in row()} == row()
    assert [file.name for file in path.parent.iterdir()] == ["gda-fewshot--dtd--RN50--16.json"]
    assert published.read_rows(tmp_path / "nowhere") == []


def test_the_digest_is_of_content_not_of_layout(tmp_path):
    path = published.write_row(row(), tmp_path)
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert len(published.read_rows(tmp_path)) == 1


@pytest.mark.parametrize("field", ["value", "interval", "metric"])
def test_a_result_changed_by_hand_is_refused(tmp_path, field):
    path = published.write_row(row(), tmp_path)
    held = json.loads(path.read_text())
    held["results"][0][field] = {"value": 99.0, "interval": [0.0, 1.0], "metric": "top5"}[field]
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"dtd.*its digest is not that of its content.*never by hand"):
        published.read_rows(tmp_path)


@pytest.mark.parametrize("field", list(published.FIELDS))
def test_a_row_without_a_field_is_refused(tmp_path, field):
    path = published.write_row(row(), tmp_path)
    held = json.loads(path.read_text())
    del held[field]
    if field != "digest":
        held["digest"] = published.digest(held)
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=f"lacks {field}"):
        published.read_rows(tmp_path)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"results": []}, "has no results"),
        ({"results": [{"metric": "top1"}]}, "lacks unit, value"),
        ({"results": [row()["results"][0] | {"value": float("nan")}]}, "not a number"),
        ({"shots": "16"}, "shots has the wrong type, str"),
        ({"task": "gda"}, "task must be one of gda-fewshot"),
        ({"note": "mine"}, "unknown field note"),
    ],
)
def test_an_unsound_row_is_not_written(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        published.write_row(row(**changed), tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_rows_of_one_setting_are_refused(tmp_path):
    path = published.write_row(row(), tmp_path)
    (tmp_path / "copy.json").write_text(path.read_text())
    with pytest.raises(ValueError, match="second row"):
        published.read_rows(tmp_path)


def test_no_json_is_refused(tmp_path):
    (tmp_path / "row.json").write_text("{")
    with pytest.raises(ValueError, match=r"row\.json is no JSON"):
        published.read_rows(tmp_path)


# --- the page ---------------------------------------------------------------------------------------------------------


def lines_of(page: str, *begin: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| " + " | ".join(begin) + " |")]


def test_an_empty_ledger_says_so():
    """Every published setting has a line; what was not run says so, and what nobody can run here says that."""
    page = published.page(FIGURES, [])
    assert "none of them has been run yet" in page
    body = [line for line in page.splitlines() if line.startswith("| ") and "| Set |" not in line and "---" not in line]
    assert len(body) == len({(*f.key, f.metric) for f in FIGURES if not f.metric.endswith(" sd")})
    assert {line.removesuffix(" |").split(" | ")[-1] for line in body} == {"not run", "no command"}
    [line] = lines_of(page, "dtd", "RN50", "16", "top1")
    [log] = [f.value for f in FIGURES if f.key == ("gda-fewshot", "dtd", "RN50", "16") and f.metric == "top1"]
    assert f"| {log:.2f} % ± " in line
    assert all(f"## {title}" in page for title in published.TASKS.values())


def test_a_column_without_content_is_left_out():
    """Until something has been run no table has intervals; one run brings the column to its own table alone."""
    empty, one = published.page(FIGURES, []), published.page(FIGURES, [published.seal(row())])
    assert (empty.count("95 % interval"), one.count("95 % interval")) == (0, 1)
    for page in (empty, one):
        for table in page.split("## ")[1:]:
            widths = {line.count(" | ") for line in table.splitlines() if line.startswith("| ")}
            assert len(widths) == 1, "a table's lines have different numbers of cells"


def test_a_run_fills_its_line_only():
    page = published.page(FIGURES, [published.seal(row())])
    [line] = lines_of(page, "dtd", "RN50", "16", "top1")
    assert "| 64.50 % ± 0.50 | 63.26 to 65.74, t over 3 seeds | -1.90 (reference log) | 2026-01-02, a card |" in line
    assert "not run" in lines_of(page, "dtd", "RN50", "8", "top1")[0]
    assert page.count("2026-01-02") == 1 and "1 of them have been run" in page


def test_a_run_without_a_published_figure_is_shown():
    page = published.page(FIGURES, [published.seal(row(backbone="ViT-L/14"))])
    assert len(lines_of(page, "dtd", "ViT-L/14", "16", "top1")) == 1 and "1 further runs" in page


def test_the_average_waits_for_all_eleven():
    """Values 1 .. 11 have the mean 6."""
    results = [[row()["results"][0] | {"value": float(i)}] for i in range(1, 12)]
    rows = [published.seal(row(dataset=n, results=r)) for n, r in zip(ELEVEN, results, strict=True)]
    [part], [whole] = (lines_of(published.page(FIGURES, some), AVERAGE, "RN50", "16") for some in (rows[:10], rows))
    assert "not run" in part and "| 6.00 % |" in whole


def test_both_averages_of_h():
    """Base 80 and new 40 in one set, 60 and 60 in ten: the H are 160/3 and 60, their mean 656.67/11 ... 59.39; the
    averages are 680/11 and 640/11, their H 2 * 680 * 640 / (11 * 1320) = 59.94."""
    one = row()["results"][0]

    def made(name: str, base: float, new: float) -> dict:
        found = {"base": base, "new": new, "H": 2 * base * new / (base + new)}
        results = [one | {"metric": metric, "value": value} for metric, value in found.items()]
        return published.seal(row(task="gda-base-to-new", backbone="ViT-B/16", dataset=name, results=results))

    rows = [made(ELEVEN[0], 80.0, 40.0), *(made(name, 60.0, 60.0) for name in ELEVEN[1:])]
    page = published.page(FIGURES, rows)
    assert "| 59.39 % |" in lines_of(page, AVERAGE, "ViT-B/16", "16", "H")[0]
    assert "| 59.94 % |" in lines_of(page, AVERAGE, "ViT-B/16", "16", "H of averages")[0]


# --- the book ---------------------------------------------------------------------------------------------------------


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    """The page alone, by Sphinx with MyST, warnings as errors."""
    conf = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'book' / '_ext')!r}]\n"
    (root / "conf.py").write_text(
        conf + "extensions = ['myst_parser', 'reproduction']\nroot_doc = 'book/reproduction'\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(root), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def book(tmp_path) -> Path:
    pytest.importorskip("myst_parser", reason="the extra book has it")
    (tmp_path / "book").mkdir()
    text = (ROOT / "book" / "reproduction.md").read_text(encoding="utf8")
    (tmp_path / "book" / "reproduction.md").write_text(text, encoding="utf8")
    return tmp_path


def test_the_page_is_built_and_takes_new_rows(book):
    """A row that is added later is on the page of the next build, although no file that Sphinx knew has changed."""
    html = book / "out" / "book" / "reproduction.html"
    assert (done := build(book, book / "out")).returncode == 0, done.stderr
    assert "none of them has been run yet" in html.read_text()
    published.write_row(row(), book / reproduction.ROWS)
    assert (done := build(book, book / "out")).returncode == 0, done.stderr
    assert "64.50 % ± 0.50" in html.read_text()


def test_a_row_changed_by_hand_stops_the_build(book):
    path = published.write_row(row(), book / reproduction.ROWS)
    path.write_text(path.read_text().replace("64.5,", "84.5,", 1))
    done = build(book, book / "out")
    assert done.returncode != 0
    assert "its digest is not that of its content" in done.stderr


def test_the_books_own_ledger_is_sound():
    page = reproduction.ledger(ROOT)
    assert all(f"minilib reproduce {task}" in page for task in published.TASKS)


def test_the_page_types_no_result():
    """Numbers stand in the table's sources only: the page's own text has none but the level of the intervals."""
    text = (ROOT / "book" / "reproduction.md").read_text(encoding="utf8")
    assert set(re.findall(r"\d+(?:\.\d+)?", text)) == {"95", "50"}
