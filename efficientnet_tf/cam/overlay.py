"""Maps on the picture that they are about, at its own size."""

from __future__ import annotations

import numpy as np

from efficientnet_tf.preprocessing import Preprocessing

# Colours of a map's values from 0 to 1, from dark to light, so that readers of any colour vision
# and gray prints keep the order (red, green, blue; black body without its dark end).
_COLORS = np.array(
    [(60, 0, 100), (150, 20, 110), (225, 60, 60), (252, 150, 20), (255, 245, 120)], np.float32
)


def covered(shape: tuple[int, int], rule: Preprocessing | None) -> tuple[int, int, int, int]:
    """The part of a picture that the network sees.

    Args:
        shape: height and width of the picture.
        rule: by which it was cropped and resized; None for all of it.

    Returns:
        Top, left, height, width, in pixels of the picture.
    """
    if rule is None or rule.crop_ratio is None:
        return 0, 0, shape[0], shape[1]
    from efficientnet_tf.data import images

    top, left, height, width = images.center_box(np.asarray(shape, np.int32), rule).numpy()
    return int(top), int(left), int(height), int(width)


def placed(
    heat: np.ndarray, shape: tuple[int, int], rule: Preprocessing | None = None
) -> np.ndarray:
    """Undoes resize and crop: brings a map to the size and aspect of the picture.

    Args:
        heat: float (h, w) in [0, 1], of `cam`.
        shape: height and width of the picture.
        rule: by which it was cropped and resized; None where all of it was resized.

    Returns:
        float32 (height, width) in [0, 1], bilinear; 0 outside what the network saw.
    """
    import tensorflow as tf

    heat = np.asarray(heat, np.float32)
    if heat.ndim != 2:
        raise ValueError(f"heat must be one map (h, w). Received: shape {heat.shape}")
    top, left, height, width = covered(shape, rule)
    resized = tf.image.resize(heat[..., None], (height, width), "bilinear").numpy()[..., 0]
    whole = np.zeros(shape, np.float32)
    whole[top : top + height, left : left + width] = np.clip(resized, 0, 1)
    return whole


def overlay(
    picture: np.ndarray,
    heat: np.ndarray,
    rule: Preprocessing | None = None,
    *,
    strength: float = 0.75,
) -> np.ndarray:
    """Colours a picture by a map: the stronger the evidence, the brighter and denser the colour.

    Args:
        picture: uint8 (height, width, 3), as it was before crop and resize.
        heat: float (h, w) in [0, 1], of `cam`.
        rule: by which the picture was cropped and resized; None where all of it was resized. What
            is outside the crop stays plain.
        strength: share of the colour where the map is 1, in [0, 1].

    Returns:
        uint8 (height, width, 3).
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            "picture must be uint8 (height, width, 3). Received:"
            f" {picture.dtype} of shape {picture.shape}"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1]. Received: strength={strength}")
    whole = placed(heat, picture.shape[:2], rule)
    share = strength * whole[..., None]
    return np.rint(picture * (1 - share) + colors(whole) * share).astype(np.uint8)


def colors(values: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1].

    Returns:
        float32 (…, 3) in [0, 255].
    """
    steps = np.linspace(0, 1, len(_COLORS))
    channels = [np.interp(values, steps, _COLORS[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).astype(np.float32)
