"""Every script of examples/ runs, and shows what its docstring says that it shows."""

import ast
import contextlib
import io
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
FIGURE = re.compile(r"\d[\d.]*(?:e[+-]?\d+)?")
SMALL = ["--method=cayley", "--width=4", "--layers-per-block=1", "--epochs=2"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the main function of a script in an empty folder, and gives back torch's threads."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def call(name, *arguments):
    """What main returns; what it prints is printed, and compared with what the documentation shows."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        found = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](list(arguments))
    print(output.getvalue())
    recorded = EXAMPLES / "output" / f"{name}.txt"
    if recorded.is_file():
        wanted = lines_without_figures(recorded.read_text(encoding="utf-8"))
        assert lines_without_figures(output.getvalue()) == wanted, "run `python tools/docs/notebooks.py record`"
    return found


def lines_without_figures(text):
    """The different lines of an output, with # for every figure: small runs have fewer lines, and other figures."""
    return {" ".join(FIGURE.sub("#", line).split()) for line in text.splitlines()} - {""}


def test_certified_digits(run, capsys):
    certificate, attack = run("certified_digits", *SMALL)
    assert certificate.lipschitz <= 1 + 1e-5
    assert certificate.accuracy > 0.5
    assert len(attack.broken) == 0
    for eps, share in certificate.cra.items():
        assert share <= attack.robust_accuracy[eps]
    assert "epoch 2: loss" in capsys.readouterr().out


def test_wasserstein(run):
    estimate, exact = run("wasserstein", "--points=64", "--steps=120", "--width=32")
    # The dual function is a lower bound for every 1-Lipschitz function; both are means of float32 coordinates.
    assert 0.9 * exact <= estimate <= exact * (1 + 1e-5)
    separated, same = run("wasserstein", "--points=64", "--steps=20", "--width=32", "--alpha=0.9")
    assert same == exact
    assert separated < estimate


def test_conformal_digits(run, tmp_path):
    found = run("conformal_digits", *SMALL, "--eps", "0", "0.25", "--figure=sets.png")
    # The coverage of a split has this mean and standard deviation (beta-binomial, 180 images to calibrate and 180 to
    # test): four standard errors of 100 splits.
    level, width = 163 / 181, 4 * 0.0314 / 10
    plain, robust, *sizes = found[0.0]
    assert abs(plain - level) <= width
    assert (robust, sizes[1]) == pytest.approx((plain, sizes[0]), abs=0.01)
    plain, robust, *sizes = found[0.25]
    assert plain < level - 0.1
    assert robust >= level - width
    assert sizes[0] < sizes[1] < 10
    unbounded = run("conformal_digits", *SMALL, "--plain", "--eps", "0", "0.5")
    assert abs(unbounded[0.0][0] - level) <= width
    assert unbounded[0.5][0] < level - 0.1
    assert unbounded[0.5][3] > 9, "sets that hold under attack have nearly all classes"
    assert (tmp_path / "sets.png").stat().st_size > 0


def check_signed_distance(found, rays, error):
    for name in ("HKR", "eikonal"):
        mean_error, bound, arrived, overshot = found[name]
        assert bound <= 1 + 1e-5
        assert overshot == 0
        assert arrived > 0.9 * rays
        assert mean_error < error
    assert found["plain, eikonal"][1] > 10


def test_signed_distance(run, tmp_path):
    check_signed_distance(run("signed_distance", "--steps=80", "--rays=2000", "--figure=sd.png"), 2000, 0.4)
    assert (tmp_path / "sd.png").stat().st_size > 0


@pytest.mark.filterwarnings("ignore")  # of the other package
@pytest.mark.parametrize("linear", ["fastlip.nn:BjorckLinear", "deel.torchlip:SpectralLinear"])
def test_critics_and_distances_with_other_dense_layers(run, linear):
    pytest.importorskip(linear.partition(":")[0])
    found = run("signed_distance", "--steps=60", "--rays=500", f"--linear={linear}")
    for name in ("HKR", "eikonal"):
        assert found[name][1] <= 1 + 1e-3, "deel-torchlip's tolerance"
        assert found[name][3] == 0, "steps are divided by the audited bound"
    for row in run("gaussian_distances", "--steps=15", f"--linear={linear}").values():
        assert row["certified"][1] <= 1 + 1e-3
        assert 0.3 < row["certified"][0] < 1.02


@pytest.mark.slow
def test_no_ray_of_100_000_overshoots(run):
    found = run("signed_distance")
    check_signed_distance(found, 100_000, 0.06)
    assert found["HKR"][0] < 0.03
    assert found["plain, eikonal"][3] > 0


def test_monotone_tabular(run, tmp_path):
    found = run("monotone_tabular", "--splits=1", "--steps=60", "--figure=monotone.png")
    accuracy, fallen, *cra = found["monotone"]
    assert fallen == 0, "of 10,000 pairs"
    assert accuracy > 0.85
    assert accuracy >= cra[0] >= cra[5] > found["plain"][2 + 5]
    assert found["boosting"][1] == 0
    assert (tmp_path / "monotone.png").stat().st_size > 0


@pytest.mark.slow
def test_a_monotone_classifier_is_as_accurate_as_boosting(run):
    found = run("monotone_tabular")
    assert found["monotone"][1] == 0, "of 10,000 pairs in each of ten splits"
    assert found["monotone"][0] > found["boosting"][0] - 0.02


def test_gaussian_distances(run, tmp_path):
    found = run("gaussian_distances", "--steps=25", "--figure=bars.png")
    for row in found.values():
        ratio, bound = row["certified"]
        assert bound <= 1 + 1e-5
        assert 0.5 < ratio < 1.02, "a lower bound up to the noise of 200,000 samples"
        assert 0 < row["spectral_norm"][0] < 1.02
    assert (tmp_path / "bars.png").stat().st_size > 0


@pytest.mark.slow
def test_distances_of_gaussians_are_within_two_percent(run):
    found = run("gaussian_distances")
    for title, row in found.items():
        assert abs(row["certified"][0] - 1) <= 0.02, title
        assert row["WGAN-GP"][0] > 1.05, title
        if title.startswith("scale"):
            assert row["spectral_norm"][0] < 0.7, title


def test_wgan(run, tmp_path):
    away = run("wgan", "--steps=3", "--figure=digits.png")
    assert away["training digits"] < away["certified"]
    assert (tmp_path / "digits.png").stat().st_size > 0


@pytest.mark.slow
def test_a_wgan_comes_as_near_to_digits_as_wgan_gp(run):
    away = run("wgan")
    assert away["training digits"] < away["certified"] < 1.1 * away["WGAN-GP"]


def check_robust_control(found):
    bound, change, *upright = found["sandwich"]
    assert bound == pytest.approx(2.0, abs=1e-5)
    assert 0.1 < change <= bound, "the largest change of an action in 10,000 attacks, over eps"
    assert upright == sorted(upright, reverse=True)
    return upright


def test_robust_control(run, tmp_path):
    check_robust_control(run("robust_control", "--updates=2", "--figure=control.png"))
    assert (tmp_path / "control.png").stat().st_size > 0


@pytest.mark.slow
def test_a_lipschitz_policy_balances_and_its_bound_is_reached(run):
    found = run("robust_control")
    upright = check_robust_control(found)
    assert upright[0] > 250
    assert found["sandwich"][1] > 1.8
    assert found["plain"][1] > 4, "no bound was asked for"


def check_plug_and_play(found):
    residuals, _, bound = found["firmly nonexpansive"]
    assert bound <= 1 + 1e-6
    assert (residuals[1:] <= residuals[:-1] + 1e-12).all(), "the residual is monotone"


def test_plug_and_play(run, tmp_path):
    found = run("plug_and_play", "--steps=5", "--side=16", "--figure=deblurred.png")
    check_plug_and_play(found)
    assert found["plain"][2] > 1
    assert (tmp_path / "deblurred.png").stat().st_size > 0


@pytest.mark.slow
def test_a_firmly_nonexpansive_denoiser_converges_and_deblurs(run):
    found = run("plug_and_play")
    check_plug_and_play(found)
    residuals, quality, _ = found["firmly nonexpansive"]
    assert (residuals[-1] < 1e-3 * residuals[0]).all()
    assert quality[-1].mean() > quality[0].mean() + 2


@pytest.mark.slow
def test_coverage_of_100_splits_is_within_its_confidence_interval(run):
    found = run("conformal_digits")
    level, width = 163 / 181, 4 * 0.0314 / 10  # as in test_conformal_digits
    assert abs(found[0.0][0] - level) <= width
    for eps, (plain, robust, *sizes) in found.items():
        assert robust >= level - width, eps
        assert sizes[0] <= sizes[1] < 5
        assert plain <= robust


def test_swap_layers(run, capsys):
    plain, swapped = run("swap_layers", "--epochs=2")
    assert swapped.lipschitz <= 1 + 1e-6 < plain.lipschitz
    assert swapped.cra[36 / 255] > plain.cra[36 / 255]
    assert "swapped: audited L" in capsys.readouterr().out


def test_convert_resnet(run, capsys):
    report, certificate = run("convert_resnet", "--epochs=1")
    assert report.complete
    assert certificate.lipschitz <= 1 + 1e-5
    assert certificate.accuracy > 0.3
    assert "audited L 1.00000" in capsys.readouterr().out


@pytest.mark.slow
def test_convert_resnet_in_full(run):
    report, certificate = run("convert_resnet")
    assert report.complete
    assert certificate.lipschitz <= 1 + 1e-5
    assert certificate.cra[36 / 255] > 0.8


def test_convert_resnet_is_short():
    lines = (EXAMPLES / "convert_resnet.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) and not line.strip().startswith('"""') for line in lines) <= 40


def test_cifar10(run, tmp_path, capsys):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = generator.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    certificate = run("cifar10", str(tmp_path), "--device=cpu", *SMALL)
    assert certificate.n == 4
    assert certificate.lipschitz <= 1 + 1e-5
    assert "20 training and 4 test images" in capsys.readouterr().out


def test_cifar10_without_data_ends_in_one_line(run):
    with pytest.raises(SystemExit, match=r"cifar10\.py: nowhere: no such folder"):
        run("cifar10", "nowhere")


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_says_how_long_it_takes_and_is_run_here(script):
    about = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert "akes about" in about
    assert "minute" in about or "second" in about
    assert f'run("{script.stem}"' in Path(__file__).read_text(encoding="utf-8")
