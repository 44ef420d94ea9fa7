"""From records to batches: the order of operations on one page.

    training:    shuffle -> number -> shard -> decode and crop -> resize -> whole numbers* -> shift
                 -> flip -> AutoAugment or RandAugment* -> cutout -> random erasing -> batch
                 -> layer of Keras or KerasCV -> mixup and cutmix -> prefetch
    evaluation:  in order, each picture once -> shard -> decode -> crop and resize -> fill -> batch

    * where one of these two is on, or a tf.data service; otherwise pixels stay unrounded

Every random choice is a pure function of the seed, of the picture's position in the run and of what
is chosen (its stream), so that neither the number of threads nor a restart changes what the network
sees. A tf.data service (`data.service`) and plugged-in layers (`data.plugged`) cannot keep to that.

Bad records (`data.bad`) are left out: in training another picture of the batch takes the place, so
that positions stay as they are, and in evaluation the weight is 0. Shapes are static.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import augment, bad, crops, images, mix, plugged, service
from efficientnet_tf.data.bad import BadRecords
from efficientnet_tf.data.policies import AUTOAUGMENT_SIZES, RANDAUGMENT_SIZES
from efficientnet_tf.data.records import Source
from efficientnet_tf.preprocessing import Preprocessing

_STREAMS = ("crop", "shift", "flip", "augment", "cutout", "erase", "mix")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of the records an input pipeline reads: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1


def training(
    source: Source,
    config: DataConfig,
    image_size: int,
    batch_size: int,
    *,
    seed: int = 0,
    start: int = 0,
    shard: Shard = Shard(),
    num_parallel_calls: int = tf.data.AUTOTUNE,
    found: BadRecords | None = None,
) -> tf.data.Dataset:
    """Endless batches to train on.

    Args:
        source: gives the pictures.
        config: says how they are cropped, resized and augmented, and what share may be bad.
        image_size: pixels, square.
        batch_size: pictures per batch; the caller divides the global batch over replicas.
        seed: of order and augmentation.
        start: records of the run that were already used, on all hosts: position of the first one.
        shard: part of the records to read, where several machines read.
        num_parallel_calls: pictures decoded at a time; does not change the result.
        found: takes note of bad records, and says what share may be bad; None for one of its own
            with `config.max_bad`.

    Returns:
        A dataset of (images float32 (batch_size, image_size, image_size, 3) in [0, 255], targets
        float32 (batch_size, classes): one-hot, or zeros and ones where the source has several
        labels per picture, and shares of these with mixup and cutmix). Reading it raises
        `tf.errors.InvalidArgumentError`, with the names of the records, when too many are bad.

    Raises:
        ValueError: `data.augment` names no usable layer, or a tf.data service is asked to feed
            several hosts.
        ImportError: KerasCV is asked for and not installed.
    """
    example = _training_example(source, config, image_size, seed)
    if config.service is None:
        examples = (
            source.records("train", seed, start)
            .enumerate(start)
            .shard(shard.count, shard.index)
            .map(lambda position, record: example(position, *record), num_parallel_calls)
        )
    elif shard.count > 1:
        raise ValueError(
            f"data.service={config.service!r} feeds one host. Received: {shard.count} hosts."
        )
    else:
        count = source.num_examples["train"]

        def one_pass(number: int) -> tf.data.Dataset:
            def keyed(*record):
                # Records come in no fixed order here: what they hold takes the place of positions.
                content = [tf.io.serialize_tensor(part) for part in record]
                key = tf.strings.to_hash_bucket_fast(
                    tf.strings.join([*content, str(number)]), 2**62
                )
                return example(key, *record)

            order = (seed * 1_000_003 + number) % 2**62  # another one for each seed and pass
            records = service.shuffled(source.records("train", None), count, order)
            return records.map(keyed, num_parallel_calls)

        examples = service.endless(one_pass, config.service, count, start)

    batches = examples.batch(batch_size, drop_remainder=True)
    found = found or BadRecords(config.max_bad)
    share = max(source.num_examples["train"] // shard.count, 1)
    first = start // shard.count % share
    batches = bad.report(batches, found, source, share, first)
    batches = batches.enumerate()

    def finish(number, batch):
        pictures_, targets, problems = batch
        if not source.checked:
            pictures_, targets = bad.replace(problems, pictures_, targets)
            pictures_.set_shape((batch_size, image_size, image_size, 3))
            targets.set_shape((batch_size, source.num_classes))
        return number, tf.cast(pictures_, tf.float32), targets

    def mixed(number, pictures_, targets):
        # The position of the batch's first picture, which no other batch of the run has.
        first = start + number * (batch_size * shard.count) + shard.index
        key = _seed(seed, "mix", first)
        return mix.mix(
            pictures_, targets, config.mixup, config.cutmix, key, bug_compat=config.bug_compat
        )

    batches = batches.map(finish, num_parallel_calls)
    if ":" in config.augment:
        layer = plugged.layer(config, seed + start + shard.index)
        batches = batches.map(lambda number, *batch: (number, *layer(*batch)))
    return _with_options(batches.map(mixed, num_parallel_calls).prefetch(tf.data.AUTOTUNE))


def evaluation(
    source: Source,
    split: str,
    rule: Preprocessing,
    batch_size: int,
    *,
    fill_to: int | None = None,
    shard: Shard = Shard(),
    num_parallel_calls: int = tf.data.AUTOTUNE,
    found: BadRecords | None = None,
) -> tf.data.Dataset:
    """Every picture of a split once, in order, in batches of equal size.

    The last batches are filled with black pictures of weight 0, so that shapes are static and every
    replica takes the same number of steps. Bad records are such pictures too.

    Args:
        source: gives the pictures.
        split: "train", "validation" or "test".
        rule: how the pictures are cropped and resized.
        batch_size: pictures per batch.
        fill_to: pictures that all replicas take in one step; None is one batch.
        shard: part of the pictures to read, where several machines read.
        num_parallel_calls: pictures decoded at a time; does not change the result.
        found: takes note of bad records, and says what share may be bad; None for one of its own.

    Returns:
        A finite dataset of (images float32 (batch_size, rule.size, rule.size, 3) in [0, 255],
        labels int64 (batch_size,), or float32 (batch_size, classes) of zeros and ones where the
        source has several labels per picture, weights float32 (batch_size,): 0 for filling and bad
        records, otherwise 1). Reading it raises `tf.errors.InvalidArgumentError`, with the names of
        the records, when too many are bad.

    Raises:
        ValueError: `fill_to` is no multiple of the shards' batches.
    """
    fill_to = fill_to or batch_size * shard.count
    if fill_to % (batch_size * shard.count):
        raise ValueError(
            f"fill_to must be a multiple of {shard.count} shards' batches of {batch_size}, or"
            f" pictures would be lost. Received: fill_to={fill_to}"
        )
    guarded = bad.guard(source, lambda _, *record: source.decode(*record))
    sides = (rule.size, rule.size, 3)

    def example(*record):
        image, label, problem = guarded(0, *record)
        image = tf.ensure_shape(images.resize_and_crop(image, rule), sides)
        return image, label, tf.cast(problem == "", tf.float32), problem

    count = source.num_examples[split]
    own = len(range(shard.index, count, shard.count))
    missing = (count + -count % fill_to) // shard.count - own
    # Before the map, so that no machine decodes what another one needs.
    records = source.records(split, None).shard(shard.count, shard.index)
    examples = records.map(example, num_parallel_calls)
    filling = tuple(tf.zeros(spec.shape, spec.dtype) for spec in examples.element_spec[:3])
    filling = tf.data.Dataset.from_tensors((*filling, "")).repeat(missing)
    batches = examples.concatenate(filling).batch(batch_size, drop_remainder=True)
    batches = bad.report(batches, found or BadRecords(), source, max(own, 1))
    return _with_options(batches.map(lambda *batch: batch[:3]).prefetch(tf.data.AUTOTUNE))


def pictures(
    source: Source,
    split: str,
    rule: Preprocessing,
    batch_size: int,
    *,
    found: BadRecords | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every picture of a split once, in order, as arrays; the last batch may be smaller.

    Args:
        source: gives the pictures.
        split: "train", "validation" or "test".
        rule: how the pictures are cropped and resized.
        batch_size: pictures per batch.
        found: as for `evaluation`.

    Yields:
        (images float32 (batch, rule.size, rule.size, 3) in [0, 255], labels as in `evaluation`).
    """
    for images_, labels, weights in evaluation(source, split, rule, batch_size, found=found):
        real = weights.numpy() > 0
        if real.any():
            yield images_.numpy()[real], labels.numpy()[real]


def evaluation_steps(source: Source, split: str, batch_size: int) -> int:
    """Steps through a split, at this batch size over all replicas."""
    return -(-source.num_examples[split] // batch_size)


@tf.autograph.experimental.do_not_convert  # tracing is faster, and there is nothing to convert
def distort(image: tf.Tensor, config: DataConfig, seed: int, position: tf.Tensor) -> tf.Tensor:
    """Does to one picture what training does after the resize and before the batch.

    Args:
        image: float32 (size, size, 3) in [0, 255], but for what a bicubic resize overshoots.
        config: `shift`, `flip`, `augment`, `cutout`, `random_erasing` and their settings are used.
        seed: of the run.
        position: int64 scalar, of the picture in the run.

    Returns:
        (size, size, 3) in [0, 255]: uint8 where the module's docstring says so, or else float32.
    """
    image = tf.clip_by_value(image, 0.0, 255.0) if "bicubic" in config.resize else image
    own = config.has_own_augment
    if own or config.service is not None:
        image = tf.cast(image + 0.5, tf.uint8)  # rounds; moving pixels afterwards is cheaper
    if config.shift:
        image = _shift(image, config.shift, _seed(seed, "shift", position))
    if config.flip:
        image = _flip(image, _seed(seed, "flip", position))
    if own:
        key = _seed(seed, "augment", position)
        share = image.shape[0] / 224 if config.augment_pixels == "relative" else 1.0
        if config.augment == "autoaugment":
            image = augment.autoaugment(
                image,
                key,
                sizes=AUTOAUGMENT_SIZES.scaled(share),
                bug_compat=config.bug_compat,
            )
        else:
            image = augment.randaugment(
                image,
                key,
                num_layers=config.num_layers,
                magnitude=config.magnitude,
                sizes=RANDAUGMENT_SIZES.scaled(share),
                bug_compat=config.bug_compat,
            )
    if config.cutout:
        key = _seed(seed, "cutout", position)
        image = augment.cutout(image, key, config.cutout, fill=config.cutout_fill)
    if config.random_erasing:
        image = augment.random_erasing(image, _seed(seed, "erase", position), config.random_erasing)
    return image


def _training_example(source: Source, config: DataConfig, image_size: int, seed: int) -> Callable:
    """(position, *record) -> (image, target, problem), see `bad.guard`."""
    crop = crops.CROPS.get(config.crop)

    def decode(position, *record):
        if crop is None:
            return source.decode(*record)
        key = _seed(seed, "crop", position)
        if source.encoded is None:
            image, label = source.decode(*record)
            return crops.cut(image, crops.draw(crop, tf.shape(image)[:2], image_size, key)), label
        encoded, label = source.encoded(*record)
        box = lambda shape: crops.draw(crop, shape, image_size, key)  # noqa: E731
        return crops.decode_and_cut(encoded, box), label

    guarded = bad.guard(source, decode)

    def example(position, *record):
        image, label, problem = guarded(position, *record)
        image = images.resize(image, image_size, config.resize)
        image.set_shape((image_size, image_size, 3))
        image = distort(image, config, seed, position)
        vector = source.multi_label or source.soft
        target = label if vector else tf.one_hot(label, source.num_classes)
        return tf.ensure_shape(image, (image_size, image_size, 3)), target, problem

    return example


def _seed(seed: int, stream: str, position: tf.Tensor) -> tf.Tensor:
    """Seed of one random choice, int64 (2,): each stream and each position has its own."""
    # Apart by 2**16, because operations may derive seeds of their own by adding small numbers.
    number = (seed * len(_STREAMS) + _STREAMS.index(stream)) * 2**16
    return tf.stack([tf.constant(number % 2**63, tf.int64), tf.cast(position, tf.int64)])


def _flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    mirror = tf.random.stateless_uniform((), seed, alg="philox") < 0.5
    return tf.cond(mirror, lambda: tf.reverse(image, [1]), lambda: image)


def _shift(image: tf.Tensor, most: int, seed: tf.Tensor) -> tf.Tensor:
    # Moving by clipped indices repeats the border, which is what pictures have there: black would
    # be a new edge. philox gives the same numbers on every device.
    offset = tf.random.stateless_uniform(
        (2,), seed, minval=-most, maxval=most + 1, dtype=tf.int32, alg="philox"
    )
    for axis in (0, 1):
        length = image.shape[axis]
        index = tf.clip_by_value(tf.range(length) + offset[axis], 0, length - 1)
        image = tf.gather(image, index, axis=axis)
    return image


def _with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.max_intra_op_parallelism = 1  # pictures are parallel, not their pixels
    return dataset.with_options(options)
