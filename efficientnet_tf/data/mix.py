"""Mixup and cutmix: training on two pictures of a batch at once.

The rule is that of the released V2 code (automl efficientnetv2/datasets.py). Mixup: H. Zhang et
al., 2018, arXiv:1710.09412. Cutmix: S. Yun et al., 2019, arXiv:1905.04899.
"""

import tensorflow as tf


def mix(
    images: tf.Tensor,
    targets: tf.Tensor,
    mixup: float,
    cutmix: float,
    seed: tf.Tensor,
    *,
    bug_compat: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes every picture of a batch, and its target, with a partner.

    The partner of the first picture is the last one, and so on. With both mixup and cutmix, the
    first half of the batch is mixed up, the second half (larger by one where the batch is odd) is
    patched, and partners are of the same half.

    Mixup: the picture's own weight is max(x, 1 - x) with x of Beta(mixup, mixup), so that it is
    never the lesser one. Cutmix: a rectangle of the partner replaces the same place of the picture;
    its sides are sqrt(1 - x) of the picture's with x of Beta(cutmix, cutmix), its centre is uniform
    in the picture, and what lies outside is lost. The target's weights are the shares of the
    pixels, of each picture by itself. The released code takes the mean share over the batch
    instead, which gives most pictures a target that they do not show.

    Args:
        images: float32 (batch, height, width, channels), batch and sides static.
        targets: float32 (batch, classes).
        mixup: alpha, 0 for none.
        cutmix: alpha, 0 for none.
        seed: int64 (2,); equal seeds mix equally.
        bug_compat: whether cutmix weighs all targets alike, as the released code does.

    Returns:
        (images, targets) of the same shapes; the sum of targets is unchanged where all sums are
        equal.
    """
    batch = images.shape[0]
    first = batch // 2 if mixup and cutmix else batch if mixup else 0
    seeds = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    shares = []  # of the partner, per pixel
    if first:
        own = beta(mixup, first, seeds[0])
        share = 1 - tf.maximum(own, 1 - own)
        sides = images.shape[1:3] if cutmix else (1, 1)  # a share per pixel only where needed
        shares.append(tf.broadcast_to(share[:, None, None, None], (first, *sides, 1)))
    if cutmix and first < batch:
        shares.append(patches(cutmix, batch - first, *images.shape[1:3], seeds[1]))
    if not shares:
        return images, targets
    partner = [*range(first)][::-1] + [*range(first, batch)][::-1]
    share = tf.concat(shares, 0)
    images = images * (1 - share) + tf.gather(images, partner) * share
    share = tf.reduce_mean(share, (1, 2))
    if bug_compat and cutmix and first < batch:
        mean = tf.reduce_mean(share[first:], 0, keepdims=True)
        share = tf.concat([share[:first], tf.repeat(mean, batch - first, 0)], 0)
    return images, targets * (1 - share) + tf.gather(targets, partner) * share


def beta(alpha: float, count: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws from Beta(alpha, alpha), also where alpha is so small that gamma variates underflow.

    A Beta variate is a / (a + b) with two of Gamma(alpha). Their logarithms are drawn: Gamma(alpha)
    is Gamma(alpha + 1) * U ** (1 / alpha) with U uniform (G. Marsaglia, W. Tsang, 2000).

    Args:
        alpha: > 0.
        count: numbers to draw.
        seed: int64 (2,).

    Returns:
        float32 (count,) in [0, 1].
    """
    first, second = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    gamma = tf.random.stateless_gamma((2, count), first, alpha=alpha + 1.0)
    uniform = 1 - tf.random.stateless_uniform((2, count), second, alg="philox")  # in (0, 1]
    logarithm = tf.math.log(gamma) + tf.math.log(uniform) / alpha
    return tf.sigmoid(logarithm[0] - logarithm[1])


def patches(alpha: float, count: int, height: int, width: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws cutmix's rectangles.

    Args:
        alpha: > 0.
        count: rectangles.
        height: of the pictures, pixels.
        width: of the pictures, pixels.
        seed: int64 (2,).

    Returns:
        float32 (count, height, width, 1): 1 inside and 0 outside.
    """
    area, rows, columns = tf.unstack(tf.random.split(seed, 3, alg="philox"))
    ratio = tf.sqrt(1 - beta(alpha, count, area))

    def inside(length, seed):
        center = tf.random.stateless_uniform((count,), seed, 0, length, tf.int32, alg="philox")
        half = tf.cast(ratio * length, tf.int32) // 2
        pixel = tf.range(length)
        return (pixel >= (center - half)[:, None]) & (pixel < (center + half)[:, None])

    mask = inside(height, rows)[:, :, None] & inside(width, columns)[:, None, :]
    return tf.cast(mask, tf.float32)[..., None]
