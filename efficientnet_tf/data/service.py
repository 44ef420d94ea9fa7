"""Pictures prepared by other machines: a tf.data service (`data.service`).

The workers decode and augment single pictures and send them as whole numbers; batches are made and
mixed here. Workers are plain TensorFlow processes; they have to reach the files by the same paths:

    service = tf.data.experimental.service
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=5000))
    worker = service.WorkerServer(service.WorkerConfig(dispatcher_address="host:5000"))

Every picture comes once in each pass, whichever worker prepares it. What a picture looks like
depends on the seed, the pass and the record alone, but the order depends on which worker is
faster. So a run cannot be repeated exactly, and one that goes on in the middle of a pass sees some
of its pictures twice and others not at all.
"""

from collections.abc import Callable, Iterator

import tensorflow as tf

_CHUNK = 32  # examples that go through Python at a time
_SHUFFLE_BYTES = 2**28
_SHUFFLE_RECORDS = 65536


def endless(
    one_pass: Callable[[int], tf.data.Dataset], address: str, count: int, start: int = 0
) -> tf.data.Dataset:
    """Pass after pass of a data set, each example of a pass once.

    Args:
        one_pass: number of a pass to its examples, tuples of tensors; made of TensorFlow's
            operations alone.
        address: of the dispatcher, "grpc://host:port".
        count: examples of a pass.
        start: examples of the run that were already used.

    Returns:
        An endless data set of the examples.

    Raises:
        ValueError: nothing answers at the address.
    """
    # A data set of its own for each pass: one that is repeated would be augmented alike every time.
    # And a finite one: of an endless one, a worker that is ahead begins the next pass early.
    distribute = tf.data.experimental.service.distribute(
        tf.data.experimental.service.ShardingPolicy.DYNAMIC, address
    )
    spec = one_pass(0).batch(_CHUNK).element_spec

    def chunks() -> Iterator[tuple[tf.Tensor, ...]]:
        number, used = divmod(start, count)
        while True:
            examples = one_pass(number).apply(distribute)
            yield from examples.take(count - used).batch(_CHUNK)
            number, used = number + 1, 0

    return tf.data.Dataset.from_generator(chunks, output_signature=spec).unbatch()


def shuffled(records: tf.data.Dataset, count: int, seed: int) -> tf.data.Dataset:
    """Shuffles the records of one pass, as far as memory goes.

    Args:
        records: small ones (paths) are shuffled all; of encoded pictures, a part at a time.
        count: of the records.
        seed: equal seeds give equal orders.
    """
    size = 1 + sum(
        len(value) if isinstance(value, bytes) else value.nbytes
        for value in next(records.take(1).as_numpy_iterator())
    )
    buffer = max(2, min(count, _SHUFFLE_RECORDS, _SHUFFLE_BYTES // size))
    return records.shuffle(buffer, seed, reshuffle_each_iteration=False)
