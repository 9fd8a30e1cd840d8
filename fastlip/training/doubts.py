"""Signs that a certificate says little: a network that has learnt nothing, or one that shrinks its inputs."""

from __future__ import annotations

from fastlip.certification.certificates import Certificate

# A network of constant L below this fraction of what it is built for gives away most of its margins.
_SHRINKING = 0.3
_TRAIN_LONGER = "Train for more epochs, try another learning rate, or a loss with a lower temperature"


def doubts(certificate: Certificate, classes: int, lipschitz: float = 1.0) -> list[str]:
    """The reasons to doubt a trained network, each with what to do about it.

    Args:
        certificate: of the trained network.
        classes: number of classes.
        lipschitz: the constant that the network is built for.
    """
    found = []
    predicted = certificate.predictions.unique()
    if certificate.n and len(predicted) == 1 < classes:
        found.append(
            f"every image is classified as class {int(predicted)}. The radii are those of a constant predictor, and"
            f" its CRA is at most the share of that class. {_TRAIN_LONGER}."
        )
    elif certificate.accuracy < (least := _least(classes)):
        found.append(
            f"the accuracy of {certificate.accuracy:.1%} is near chance: below {least:.1%} with {classes} classes."
            f" {_TRAIN_LONGER}."
        )
    if certificate.lipschitz < _SHRINKING * lipschitz:
        found.append(
            f"the audited bound L is {certificate.lipschitz:.3g}, far below {lipschitz:g}. The layers shrink what"
            " they pass on, so that margins are small. Train longer, or take a method with orthogonal layers, such as"
            " cayley or bcop."
        )
    return found


def _least(classes: int) -> float:
    """Twice chance; with two classes, where that is 1, and with three, the middle between chance and 1."""
    return min(2 / classes, (1 + 1 / classes) / 2)
