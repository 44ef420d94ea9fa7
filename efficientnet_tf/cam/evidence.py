"""What class activation maps are computed by, on tensors of any backend.

All are what is positive of a weighted sum of feature maps, and differ in the weights.
"""

from __future__ import annotations

from keras import ops


def shown(maps, weights):
    """The weighted sum of feature maps, without what is negative, from 0 to 1.

    Args:
        maps: float32 (batch, height, width, channels).
        weights: float32, as `maps` or to be broadcast to it.

    Returns:
        float32 (batch, height, width), each picture's divided by its largest value: that is 1, or
        all are 0 where nothing speaks for the class.
    """
    evidence = ops.relu(ops.sum(weights * maps, -1))
    return ops.divide_no_nan(evidence, ops.max(evidence, (1, 2), keepdims=True))


def gradcam(derivatives):
    """Weights of Grad-CAM (arXiv 1610.02391, Eq. 1): the mean derivative of each channel.

    Args:
        derivatives: float32 (batch, height, width, channels), of the class's score.

    Returns:
        float32 (batch, 1, 1, channels).
    """
    return ops.mean(derivatives, (1, 2), keepdims=True)


def gradcam_plus_plus(maps, derivatives):
    """Weights of Grad-CAM++ (arXiv 1710.11063, Eq. 5 and 19), without a common factor.

    The score is behind an exponential, as in the paper, whose derivatives of second and third order
    are then powers g**2 and g**3 of the first: alpha = g**2 / (2 g**2 + sum(A) g**3), which is
    1 / (2 + sum(A) g) wherever it counts. A sum of a map below 0, which the paper's networks with
    ReLU do not have, counts as 0: alpha would have a pole.

    Args:
        maps: float32 (batch, height, width, channels).
        derivatives: as `maps`, of the class's score.

    Returns:
        float32 (batch, 1, 1, channels).
    """
    positive = ops.relu(derivatives)
    sums = ops.relu(ops.sum(maps, (1, 2), keepdims=True))
    return ops.sum(positive / (2 + sums * positive), (1, 2), keepdims=True)
