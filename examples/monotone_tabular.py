"""A classifier of tabular data that is monotone where it should be, and robust.

Tumours (scikit-learn's breast cancer data: 30 features of cells, standardised) should never look less malignant if
a radius, perimeter, area, concavity or number of concave points is larger. If g changes by at most 1 per unit of each
feature, f(x) = g(x) + the sum of these features never falls in any of them (Kitouni et al., *Expressive Monotonic
Neural Networks*, ICLR 2023). A 1-Lipschitz g has this bound, and f is certified by its audited constant. Gradient
boosting with monotonic constraints, which has no certificate, and a plain network learn the same splits. ``--figure``
draws certified accuracies and scores of tumours against one feature. The script takes about half a minute.
"""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split
from torch import nn

import fastlip
from fastlip import nn as lip

RISING = ("radius", "perimeter", "area", "concavity", "concave points")
EPS = [0.1 * i for i in range(11)]


class Monotone(nn.Module):
    """f(x) = 0.99 g(x) + <s, x>, with s 1 at the features in which f rises (slopes at least 0.01) and 0 elsewhere."""

    def __init__(self, rising, width):
        super().__init__()
        ends = lip.CayleyLinear(len(rising), width), lip.CayleyLinear(width, 1)
        middle = lip.CayleyLinear(width, width)
        self.g = nn.Sequential(ends[0], lip.MaxMin(), middle, lip.MaxMin(), ends[1], lip.Scale(0.99))
        self.sum = nn.Linear(len(rising), 1, bias=False)
        self.sum.weight = nn.Parameter(rising.float()[None], requires_grad=False)

    def forward(self, x):
        """The scores, (n, 1)."""
        return self.g(x) + self.sum(x)


def plain(inputs, width):
    """A usual network of the same size."""
    ends, middle = (nn.Linear(inputs, width), nn.Linear(width, 1)), nn.Linear(width, width)
    return nn.Sequential(ends[0], nn.ReLU(), middle, nn.ReLU(), ends[1])


def train(model, x, labels, loss, steps):
    """Trains with all samples in each step."""
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x)[:, 0], labels.float()).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def falls(score, x, rising, pairs):
    """In how many of these pairs, one of which has larger rising features, the score of the larger one is less."""
    low = x[torch.randint(len(x), (pairs,))].double()
    high = low + torch.rand(pairs, len(rising)) * (torch.rand(pairs, len(rising)) < 0.5) * rising
    return (score(high) < score(low)).sum().item()


def draw(found, networks, x, path):
    """Certified accuracy against eps, and the scores of test tumours against one feature."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    first, *others = figure.subplots(1, 3)
    along, rows = torch.linspace(-2, 3, 61).double(), x[:40, None].double().repeat(1, 61, 1)
    rows[..., 2] = along
    for axes, (name, network) in zip(others, networks.items(), strict=True):
        first.plot(EPS, found[name][2:], label=name)
        axes.plot(along, network(rows)[..., 0].T, linewidth=0.8)
        axes.set(title=f"score, {name}", xlabel="mean perimeter (standardised)")
    first.set(title="certified robust accuracy", xlabel="L2 norm of the perturbation")
    first.legend()
    figure.savefig(path)


def main(arguments=None):
    """Returns for each model the means of accuracy and falling pairs, and of certified accuracies at EPS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=10_000, help="number of pairs in each split")
    parser.add_argument("--figure", help="file of the figure, such as monotone.png")
    options = parser.parse_args(arguments)
    data = load_breast_cancer()
    rising = torch.tensor([name.partition(" ")[2] in RISING for name in data.feature_names])
    x, labels = torch.tensor(data.data).float(), 1 - torch.tensor(data.target)  # 1: malignant
    found = {"monotone": [], "plain": [], "boosting": []}
    for split in range(options.splits):
        torch.manual_seed(split)
        fit, test = train_test_split(torch.arange(len(x)), test_size=0.3, stratify=labels, random_state=split)
        z = (x - x[fit].mean(0)) / x[fit].std(0)
        networks = {"monotone": Monotone(rising, 32), "plain": plain(len(rising), 32)}
        losses = fastlip.losses.HKR(alpha=0.998, min_margin=4.0), nn.functional.binary_cross_entropy_with_logits
        for (name, network), loss in zip(networks.items(), losses, strict=True):
            train(network, z[fit], labels[fit], loss, options.steps)
            certificate = fastlip.certify(network, [(z[test], labels[test])], EPS)
            fallen = falls(network.double(), z[test], rising, options.pairs)
            found[name].append([certificate.accuracy, fallen, *certificate.cra.values()])
        boosting = HistGradientBoostingClassifier(monotonic_cst=rising.int().numpy()).fit(z[fit], labels[fit])
        fallen = falls(lambda v: torch.tensor(boosting.decision_function(v)), z[test], rising, options.pairs)  # noqa: B023
        found["boosting"].append([boosting.score(z[test], labels[test]), fallen])
    found = {name: torch.tensor(rows, dtype=torch.double).mean(0).tolist() for name, rows in found.items()}
    for name, (accuracy, fallen, *cra) in found.items():
        certified = f", {cra[5]:.1%} certified at eps {EPS[5]}" if cra else ""
        print(f"{name}: accuracy {accuracy:.1%}, the score falls in {fallen:.0f} of {options.pairs} pairs{certified}")
    if options.figure:
        draw(found, networks, z[test], options.figure)
    return found


if __name__ == "__main__":
    main()
