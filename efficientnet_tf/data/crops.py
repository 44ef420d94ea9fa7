"""Random crops of training pictures, as the released code of both papers takes them.

A crop is drawn as a box first, from the picture's size alone, and then cut out. Of a JPEG only the
box is decoded, which gives the same pixels as decoding everything and cutting afterwards.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from efficientnet_tf import preprocessing
from efficientnet_tf.data import images


@dataclasses.dataclass(frozen=True)
class Crop:
    """How a box is drawn: `tf.image.stateless_sample_distorted_bounding_box`.

    Attributes:
        covered: least share of the picture that the box covers.
        aspect: least and largest width over height.
        area: least and largest share of the picture's area; a box must satisfy `covered` too.
        attempts: boxes that are drawn before giving up.
        fallback: what is taken then: "center", the centre crop of V1's evaluation, or "whole".
    """

    covered: float
    aspect: tuple[float, float]
    area: tuple[float, float]
    attempts: int
    fallback: str


CROPS = {
    # tpu preprocessing.py (EfficientNet V1)
    "v1": Crop(0.1, (3 / 4, 4 / 3), (0.08, 1.0), 10, "center"),
    # automl efficientnetv2/preprocessing.py; aspect and attempts are the operation's defaults
    "v2": Crop(0.0, (0.75, 1.33), (0.05, 1.0), 100, "whole"),
}


def draw(crop: Crop, shape: tf.Tensor, image_size: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws a box.

    Args:
        crop: says how, one of `CROPS`.
        shape: int32 (2,), height and width of the picture.
        image_size: pixels, side of the square that the crop will be resized to; the centre crop
            of the fallback depends on it.
        seed: int64 (2,); equal seeds and shapes give equal boxes.

    Returns:
        int32 (4,): top, left, height, width.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([shape, [3]], 0),
        bounding_boxes=tf.zeros((1, 0, 4)),
        seed=seed,
        min_object_covered=crop.covered,
        aspect_ratio_range=crop.aspect,
        area_range=crop.area,
        max_attempts=crop.attempts,
        use_image_if_no_bounding_boxes=True,
    )
    box = tf.concat([begin[:2], size[:2]], 0)
    if crop.fallback == "whole":
        return box
    rule = preprocessing.v1_eval(image_size)
    given_up = tf.reduce_all(size[:2] == shape)  # as the released code tells it
    return tf.where(given_up, images.center_box(shape, rule), box)


def cut(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Cuts a box out of a picture.

    Args:
        image: (height, width, 3), any dtype.
        box: int32 (4,), see `draw`.

    Returns:
        (box height, box width, 3) of the same dtype.
    """
    top, left, height, width = tf.unstack(box)
    return image[top : top + height, left : left + width]


def decode_and_cut(encoded: tf.Tensor, boxed: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Decodes the part of a picture that a box leaves.

    Args:
        encoded: scalar string, the content of a file that `images.decode` takes.
        boxed: (shape int32 (2,)) -> box int32 (4,), see `draw`.

    Returns:
        uint8 (box height, box width, 3), the same as `cut(images.decode(encoded), box)`.

    Raises:
        tf.errors.InvalidArgumentError: for anything that is not a picture, and for a JPEG that is
            cut off above the box's lower edge.
    """

    def jpeg():
        shape = tf.io.extract_jpeg_shape(encoded)[:2]
        top, left, height, width = tf.unstack(boxed(shape))
        # Colours are stored at half the resolution, and the decoder blends those of neighbouring
        # pixels, which at the edge of what it decodes it lacks: so a column more on either side.
        first = tf.maximum(left - 1, 0)
        after = tf.minimum(left + width + 1, shape[1])
        window = tf.stack([top, first, height, after - first])
        decoded = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        return decoded[:, left - first : left - first + width]

    def other():
        image = images.decode(encoded)
        return cut(image, boxed(tf.shape(image)[:2]))

    image = tf.cond(tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff", jpeg, other)
    return tf.ensure_shape(image, (None, None, 3))
