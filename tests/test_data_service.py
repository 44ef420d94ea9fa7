"""A tf.data service with a dispatcher and two workers in this process."""

import dataclasses
import gc

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import bad, images, pipeline, prepare, service, sources

COUNT, BATCH = 60, 8


@pytest.fixture(scope="module")
def address():
    api = tf.data.experimental.service
    dispatcher = api.DispatchServer(api.DispatcherConfig(port=0))
    host = dispatcher.target.split("://")[1]
    settings = api.WorkerConfig(dispatcher_address=host, heartbeat_interval_ms=100)
    workers = [api.WorkerServer(settings) for _ in range(2)]
    yield dispatcher.target
    gc.collect()  # iterators, or the servers would wait for them
    dispatcher._stop()
    for worker in workers:
        worker._stop()


def _source(broken=(), checked=True):
    """Gray pictures, number i of level 4 * i."""
    contents = [
        b"no picture"
        if i in broken
        else tf.io.encode_png(np.full((9, 9, 3), 4 * i, np.uint8)).numpy()
        for i in range(COUNT)
    ]

    def records(split, seed, start=0):
        assert seed is None, "a service reads finite passes"
        return tf.data.Dataset.range(COUNT).map(
            lambda i: (tf.gather(tf.constant(contents), i), i % 3, tf.strings.as_string(i))
        )

    return sources.Source(
        name="gray",
        class_names=("a", "b", "c"),
        num_examples=dict.fromkeys(sources.SPLITS, COUNT),
        records=records,
        decode=lambda content, label, name: (images.decode(content), label),
        encoded=lambda content, label, name: (content, label),
        describe=lambda content, label, name: name,
        checked=checked,
    )


def _numbers(pictures):
    return [round(float(picture[0, 0, 0]) / 4) for picture in pictures]


def test_each_picture_comes_once_in_each_of_two_epochs(address):
    config = DataConfig(service=address, crop="v2", flip=True)
    dataset = pipeline.training(_source(), config, 16, BATCH)
    assert dataset.element_spec[0].shape == (BATCH, 16, 16, 3)
    seen = []
    for pictures, targets in dataset.take(-(-2 * COUNT // BATCH)):
        numbers = _numbers(pictures.numpy())
        np.testing.assert_array_equal(np.argmax(targets, 1), np.array(numbers) % 3)
        seen += numbers
    epochs = seen[:COUNT], seen[COUNT : 2 * COUNT]
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("kind", ["folder", "tfrecord"])
def test_files_are_dealt_out_whole_and_once(address, tmp_path, kind):
    for label, name in enumerate("ab"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(15):
            pixels = np.full((9, 9, 3), 4 * (15 * label + index), np.uint8)
            content = tf.io.encode_png(pixels).numpy()
            (tmp_path / "pictures" / name / f"{index:02d}.png").write_bytes(content)
    path = tmp_path / "pictures"
    if kind == "tfrecord":
        path = tmp_path / "records"
        prepare.prepare(f"folder:{tmp_path / 'pictures'}", path, shards=5)
    config = DataConfig(source=f"{kind}:{path}", service=address, crop="v2")
    source = sources.open_source(config)
    count = source.num_examples["train"]
    expected = sorted(_numbers([source.decode(*r)[0]])[0] for r in source.records("train", None))
    batches = pipeline.training(source, config, 16, 1).take(2 * count)
    seen = [number for pictures, _ in batches for number in _numbers(pictures.numpy())]
    assert sorted(seen[:count]) == sorted(seen[count:]) == expected
    assert seen[:count] != seen[count:]


def test_a_picture_looks_different_in_each_pass_and_the_same_in_each_run(address):
    source = _source()
    gradient = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[:, None], (60, 60, 1))
    picture = np.concatenate([gradient, gradient.transpose(1, 0, 2), gradient], -1)
    config = DataConfig(service=address, crop="v2")

    def decode(content, label, name):
        pixels = tf.constant(picture)
        return tf.concat(
            [pixels[..., :2], tf.fill((60, 60, 1), tf.cast(label, tf.uint8))], -1
        ), label

    one_each = dataclasses.replace(source, decode=decode, encoded=None)
    runs = []
    for _ in range(2):
        rows = [p for p, _ in pipeline.training(one_each, config, 16, 1).take(2 * COUNT)]
        runs.append([row.numpy().tobytes() for row in rows])
    for first, second in ((runs[0][:COUNT], runs[1][:COUNT]), (runs[0][COUNT:], runs[1][COUNT:])):
        assert sorted(first) == sorted(second)
    assert len(set(runs[0])) > 1.9 * COUNT


def test_a_pass_that_was_begun_is_finished(address):
    dataset = pipeline.training(_source(), DataConfig(service=address), 16, 10, start=COUNT - 20)
    seen = [number for pictures, _ in dataset.take(8) for number in _numbers(pictures.numpy())]
    assert len(set(seen[:20])) == 20
    assert sorted(seen[20:]) == list(range(COUNT))


def test_bad_records_are_named_here(address):
    source = _source(broken=(7, 21), checked=False)
    found = bad.BadRecords(0.5)
    config = DataConfig(service=address, max_bad=0.5, mixup=0.2)
    batches = pipeline.training(source, config, 16, BATCH, found=found).take(8)
    assert all(np.isfinite(pictures).all() for pictures, _ in batches)
    assert sorted(found.names) == ["21", "7"]


def test_several_hosts_are_refused():
    config = DataConfig(service="grpc://localhost:1")
    with pytest.raises(ValueError, match="feeds one host"):
        pipeline.training(_source(), config, 16, 4, shard=pipeline.Shard(0, 2))


def test_records_are_shuffled_anew_by_the_seed_as_far_as_memory_goes(monkeypatch):
    records = tf.data.Dataset.range(1000).map(lambda i: (i, tf.strings.as_string(i)))

    def order(seed):
        return [int(i) for i, _ in service.shuffled(records, 1000, seed)]

    first = order(1)
    assert sorted(first) == list(range(1000))
    assert first == order(1)
    assert first != order(2)
    assert np.abs(np.array(first) - np.arange(1000)).max() > 500
    monkeypatch.setattr(service, "_SHUFFLE_BYTES", 100)
    assert (np.array(order(1)) - np.arange(1000)).max() < 15  # how far ahead one may come
