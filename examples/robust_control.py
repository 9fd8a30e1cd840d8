"""A cart-pole policy with a Lipschitz constant, attacked in what it observes.

If a policy is k-Lipschitz, an error of eps in its observation changes its action by at most k eps, in every state.
Sandwich layers and ``Scale(k)`` have this constant. They, and a plain network, learn to balance a pole by gradients
through the dynamics. The script prints how long it stays up if every observation is moved so that the pole falls, the
largest change of an action in 10,000 attacks, and roll-out steps per second. It takes about one minute.
"""

import argparse
import copy
import time

import torch
from torch import nn

import fastlip
from fastlip import nn as lip

LIMITS = torch.tensor([2.4, 2.0, 0.21, 2.0])  # of position, speed, angle, angular speed: the units of observations
EPS = [0.0, 0.05, 0.1, 0.15, 0.2]


def advance(state, action):
    """The cart-pole of Barto, Sutton, Anderson (1983), 0.02 s later, under a force of 10 N times the action."""
    _, speed, angle, turn = state.unbind(-1)
    push = (10 * action + 0.05 * turn.square() * angle.sin()) / 1.1
    turning = (9.8 * angle.sin() - angle.cos() * push) / (0.5 * (4 / 3 - 0.1 * angle.cos().square() / 1.1))
    return state + 0.02 * torch.stack((speed, push - 0.05 * turning * angle.cos() / 1.1, turn, turning), -1)


def start(n):
    """Random states near the middle, (n, 4)."""
    return 0.3 * (2 * torch.rand(n, 4) - 1) * LIMITS


def policies(k):
    """Networks from observations (n, 4) to actions (n, 1) between -1 and 1."""
    sandwich = lip.SandwichLinear(4, 32), lip.SandwichLinear(32, 32), lip.CayleyLinear(32, 1), lip.Scale(k)
    plain = nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    return {"sandwich": nn.Sequential(*sandwich, nn.Tanh()), "plain": nn.Sequential(*plain, nn.Tanh())}


def train(policy, updates, horizon=50):
    """Descends the cost of a second by its gradient through the dynamics."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer := torch.optim.Adam(policy.parameters()), 0.01, updates)
    for _ in range(updates):
        state, cost = start(64), 0
        for _ in range(horizon):
            state = advance(state, policy(state / LIMITS)[:, 0])
            cost = cost + (state / LIMITS).square().clamp(max=10).sum(1).mean()
        optimizer.zero_grad()
        cost.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return policy.eval().requires_grad_(False)


def attacked(policy, x, direction, eps, steps=3):
    """Observations, each moved by an L2 norm of at most eps so that the action moves in this direction, -1 or 1."""
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad((policy[:-1](x + delta)[:, 0] * direction).sum(), delta)
        delta = eps * nn.functional.normalize(gradient, dim=1)
    return x + delta


def survival(policy, eps, n=200):
    """The mean number of steps, of 300, that the pole stays up."""
    state, up, total = start(n), torch.ones(n, dtype=torch.bool), 0.0
    for _ in range(300):
        x = state / LIMITS
        falling = (x[:, 2] + x[:, 3]).sign()  # a push the other way makes the pole fall
        state = advance(state, policy(attacked(policy, x, -falling, eps))[:, 0])
        up &= (state[:, ::2].abs() <= LIMITS[::2]).all(1)
        total += up.double().mean().item()
        if not up.any():
            break
    return total


def largest_change(policy, attacks=10_000):
    """The largest change of an action over eps in this number of attacks, with eps from 0.01 to 0.5, in float64."""
    policy, x = copy.deepcopy(policy).double(), (2 * start(attacks) / LIMITS).double()
    eps, direction = 10 ** (-2 + 1.7 * torch.rand(attacks, 1).double()), torch.randint(2, (attacks,)) * 2.0 - 1
    return ((policy(attacked(policy, x, direction, eps, steps=10)) - policy(x)).abs() / eps).max().item()


def main(arguments=None):
    """Returns for each policy (audited L, largest change of an action over eps, steps upright for each of EPS)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--figure", help="file of the figure, such as robust_control.png")
    options, found = parser.parse_args(arguments), {}
    torch.manual_seed(0)
    for name, policy in policies(k=2.0).items():
        train(policy, options.updates)
        upright = [survival(policy, eps) for eps in EPS]
        found[name] = fastlip.audit(policy, (4,)).bound, largest_change(policy), *upright
        state, began = start(1), time.process_time()
        with torch.inference_mode():
            for _ in range(1000):
                state = advance(state, policy(state / LIMITS)[:, 0])
        print("{}: L at most {:.4g}, actions change by at most {:.3g} eps,".format(name, *found[name]), end=" ")
        print(f"{1000 / (time.process_time() - began):.0f} steps per second; upright", [round(n) for n in upright])
    if options.figure:
        from matplotlib.figure import Figure

        axes = (figure := Figure(figsize=(5, 3), layout="constrained")).subplots()
        for name, row in found.items():
            axes.plot(EPS, row[2:], "o-", label=f"{name}, L at most {row[0]:.3g}")
        axes.set(xlabel="L2 norm of the error in every observation", ylabel="steps upright, of 300", ylim=(0, None))
        axes.legend()
        figure.savefig(options.figure)
    return found


if __name__ == "__main__":
    main()
