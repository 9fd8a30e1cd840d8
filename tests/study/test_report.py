"""The report of a study: one file that needs no other, with pictures in SVG, folds, sorting and dark mode."""

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from studies import SMALL, TWO, assert_one_line, fake_clock, groups, row, rows_of

from fastlip.cli import main
from fastlip.models import METHODS
from fastlip.study import colors, plots
from fastlip.study.colors import Looks, themed
from fastlip.study.measuring import Measured
from fastlip.training.run_folder import RunFolder

DRAW = plots.draw
RADII = [0.5] * 6 + [0.1] * 4
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "br", "path", "use"}


class Balanced(HTMLParser):
    """Elements that are open, and those that were closed out of turn."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of two methods on two backends, each with two seeds, with a plain twin; output and folder."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_clock(patch)
        options = [option for option in TWO if option != "--no-plain"]
        result = CliRunner().invoke(main, ["compare", *options, "--seeds=2"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return (folder / "study" / "report.html").read_text(), result.stdout, folder / "study"


def test_a_report(report):
    text, output, folder = report
    # One self-contained file: all other addresses are those of files in the study's folder.
    addresses = re.findall(r'(?:src|href)="([^"#][^"]*)"', text)
    assert all((folder / address).is_file() for address in addresses)
    certificates = {address for address in addresses if address.endswith("certificate.json")}
    assert len(certificates) == 2 * 2 * 2 + 2, "each run's"
    assert not re.search(r"https?://|@import|<img", text)
    parser = Balanced()
    parser.feed(text)
    assert (parser.open, parser.wrong) == ([], [])
    # Result first, with six columns; all others are folded.
    assert text.index('class="verdict"') < text.index("<table") < text.index("<details>")
    heads = re.findall("<th>", text[: text.index("<details>")])
    assert len(heads) == 6
    assert text.count("<details>") == 4
    assert "prefers-color-scheme: dark" in text
    assert "aria-sort" in text
    sentence = html.unescape(re.search('class="verdict">(.*?)</p>', text)[1])
    assert sentence in " ".join(output.split()), "the command ends with the same sentence"


# Right edges beyond the page, and whether the table has to be scrolled.
MEASURE = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const inner = frame.contentDocument, table = inner.querySelector("table.short"), wide = table.parentElement;
  const right = [...table.querySelectorAll("th, td, a")].map(e => e.getBoundingClientRect().right);
  document.title = [Math.max(...right), wide.scrollWidth - wide.clientWidth, right.length].join(" ");
};
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show the report with")
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_the_six_columns_fit_the_page(report, width, tmp_path):
    _, _, folder = report
    page = tmp_path / "page.html"
    frame = f'<iframe width="{width}" height="800" src="{(folder / "report.html").as_uri()}"></iframe>'
    page.write_text(f"<title></title>{frame}<script>{MEASURE}</script>")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    command = (CHROMIUM, *options, page.as_uri())
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    right, scrolled, cells = map(float, re.search("<title>(.+?)</title>", shown)[1].split())
    assert cells > 6 * 5
    assert right <= width
    assert scrolled == 0


def test_the_table_of_six_columns_has_rules_for_a_phone(report):
    text, _, _ = report
    assert text.count('<table class="sortable short">') == 1
    phone = text[text.index("@media (max-width: 40rem)") : text.index("</style>")]
    assert re.search(r"table\.short tr \{ display: grid;", phone)


def test_figures_of_the_report_are_those_of_the_table(report):
    text, _, folder = report
    means = json.loads((folder / "table.json").read_text())["means"]
    assert [line["label"] for line in means][-1] == "plain"
    for line in means:
        assert f'data-value="{line["accuracy"]}"' in text
        assert f"± {100 * line['accuracy std']:.1f}" in text
    certificate = json.loads((folder / "plain-XS-auto" / "certificate.json").read_text())
    assert certificate["method"] == "plain"
    assert means[-1]["lipschitz"] >= certificate["lipschitz"]
    assert "1.11" in text, "the ratio of epochs on both backends"


def test_pictures_are_svg_files_and_part_of_the_page(report):
    text, _, folder = report
    files = sorted(file.name for file in (folder / "plots").iterdir())
    assert files == [
        "backends-1.svg",
        "backends.svg",
        "certified-1.svg",
        "certified.svg",
        "radar-1.svg",
        "radar.svg",
        "time-1.svg",
        "time.svg",
    ]
    assert text.count("<svg ") == len(files) == text.count('role="img"')
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "pictures on one page share no id"
    figures = text[text.index("<figure>") : text.index("<script>")]
    shown = set(re.findall("#[0-9a-f]{6}", figures))
    assert not shown & {light for light, _ in colors.VARIABLES.values()}, "colours of the page, light or dark"


def test_the_command_of_a_report_reproduces_its_study(report, cli, clock):
    text, _, folder = report
    command = re.search("<code>(fastlip compare .*?)</code>", text)[1].replace("&#39;", "'")
    code, output, errors = cli(*shlex.split(command)[1:], "--out", folder, "--report-only")
    assert code == 0, errors
    assert "10 runs, each with 2 s of training" in output


def test_without_matplotlib_the_report_says_so(cli, tmp_path, clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, output, _ = cli("compare", *SMALL, "--method=aol")
    assert code == 0
    assert 'plots left out: matplotlib is not installed: pip install "fastlip[train]"\n' in output
    text = (tmp_path / "study" / "report.html").read_text()
    assert "The plots are left out: matplotlib is not installed" in text
    assert "<svg" not in text


def test_variants_and_their_pictures(cli, tmp_path, clock, monkeypatch):
    monkeypatch.setattr(plots, "draw", DRAW)
    options = ("--method=aol", "--backend=auto", "--loss=offset-ce,emma", "--set=data.center=true,false")
    code, output, errors = cli("compare", *SMALL, *options)
    assert code == 0, errors
    folder = tmp_path / "study"
    labels = [line["label"] for line in json.loads((folder / "table.json").read_text())["means"]]
    assert labels == ["AOL offset-ce center", "AOL offset-ce no center", "AOL emma center", "AOL emma no center"]
    assert all(label in output for label in labels)
    kept = RunFolder(folder / "aol-XS-auto-emma-no_center").read_recipe()
    assert (kept.loss, kept.center) == ("emma", False)
    assert set(rows_of(folder)) == {"aol-XS-auto"}
    assert_one_line(cli("compare", "--out=study", "--set=optimizer.lr=0"), "lr=0", 1)


def test_scores_run_from_one_to_five():
    def line(accuracy, step):
        costs = {"seconds_per_epoch": step, "train_memory": 1, "evaluation_ms": step, "evaluation_memory": 1}
        return {"accuracy": accuracy, "cra 36/255": 0.5, **costs}

    scores = plots.scores([line(0.9, 0.1), line(0.5, 1.0), line(0.8, 10.0)])
    accuracy, cra, training, *_ = zip(*scores, strict=True)
    assert accuracy == pytest.approx((5, 1, 4))
    assert cra == (5, 5, 5), "where all are equal, all are best"
    assert training == pytest.approx((5, 3, 1)), "by the logarithm of seconds"


def test_every_method_has_its_own_colour():
    assert len({colors.color(method) for method in METHODS}) == len(METHODS)
    found = groups(row("aol", 0.9, RADII), row("sll", 0.9, RADII), row("plain", 0.9, RADII))
    looks = Looks(found)
    assert len({looks.color(group) for group in found}) == 3
    one = groups(*(row("aol", 0.9, RADII, changes=(("loss", loss),)) for loss in ("emma", "hkr")))
    assert len({Looks(one).color(group) for group in one}) == 2, "variants of one method differ in colour"


def test_the_page_decides_light_and_dark():
    assert themed(f'fill="{colors.INK}" stroke="#123456"') == 'fill="var(--ink)" stroke="#123456"'


def test_no_certified_image_is_a_figure_and_a_failed_run_is_none():
    found = groups(
        row("aol", 0.9, [0.0] * 4),
        row("aol", 0.9, [0], backend="reference", reason="failed"),
    )
    assert isinstance(found[1].rows[0].measured, Measured)
    pictures = [figure for _, figure in plots._backends(found, Looks(found))]
    texts = [text.get_text().strip() for text in pictures[1].axes[0].texts]
    assert texts == ["auto: 0.0", "reference: no figure"]
