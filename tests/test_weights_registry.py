"""The records of published weights are complete, well-formed, and found by tag."""

import collections
import re

import pytest

from efficientnet_tf.arch import VARIANTS
from efficientnet_tf.weights import fetch, registry
from efficientnet_tf.weights.registry import find, list_weights, lookup


def test_every_published_file_has_a_record():
    counts = collections.Counter(record.source for record in list_weights())
    # official: 6 baseline, 8 AutoAugment, 2 RandAugment, 9 AdvProp, 10 NoisyStudent, 5 Lite,
    # 3 EdgeTPU, 7 V2-1k, 8 V2-21k, 8 V2-21k-ft1k; lukemelas: 8 and 9 AdvProp; leondgarse: 7 V2
    # imagenet, 8 21k, 8 21k-ft1k, 8 V1 imagenet, 9 V1 NoisyStudent; timm: as listed by timm 1.0.
    assert counts == {
        "official": 6 + 8 + 2 + 9 + 10 + 5 + 3 + 7 + 8 + 8,
        "keras.applications": 8 + 7,
        "qubvel": 8 + 8,
        "lukemelas": 8 + 9,
        "leondgarse": 7 + 8 + 8 + 8 + 9,
        "timm": 61,
    }


@pytest.mark.parametrize("record", list_weights(), ids=lambda r: f"{r.variant}-{r.tag}")
def test_record_is_well_formed(record):
    assert record.variant in VARIANTS
    assert registry.RECORDS[record.variant, record.tag] is record
    assert record.url is not None or record.hub
    for url, digits in ((record.url, record.hash), (record.url_notop, record.hash_notop)):
        assert url is None or re.fullmatch(r"https://[a-z.]+/[\w./-]+\.(h5|pth|tar\.gz|tgz)", url)
        if digits is not None:
            algorithm, hexadecimal = fetch.check_hash(digits)
            assert algorithm != "sha256-prefix" or f"-{hexadecimal}.pth" in url
    assert (record.hash is None) == (record.source == "official" or record.url is None)
    assert record.classes in (1000, 1001, 21843)
    assert 190 <= record.resolution <= 800
    assert record.top1 is None or 70 < record.top1 < 90


def test_hashes_and_urls_are_all_different():
    records = list_weights()
    hashes = [h for r in records for h in (r.hash, r.hash_notop) if h]
    urls = [u for r in records for u in (r.url, r.url_notop) if u]
    assert len(set(hashes)) == len(hashes)
    assert len(set(urls)) == len(urls)


@pytest.mark.parametrize(
    ("variant", "tag", "url_end", "digits"),
    [
        ("efficientnet-b0", "imagenet", "keras-applications/efficientnetb0.h5", "md5:902e53a9"),
        ("efficientnetv2-s", "imagenet", "efficientnet_v2/efficientnetv2-s.h5", "md5:e1d88a84"),
        ("efficientnet-b7", "imagenet-randaug", "randaug/efficientnet-b7-randaug.tar.gz", None),
        ("efficientnet-l2", "noisy-student-475", "noisy_student_efficientnet-l2_475.tar.gz", None),
        ("efficientnet-edgetpu-m", "imagenet", "efficientnet/efficientnet-edgetpu-M.tar.gz", None),
        ("efficientnetv2-xl", "imagenet21k-ft1k", "v2/efficientnetv2-xl-21k-ft1k.tgz", None),
        ("efficientnet-b3", "qubvel/noisy-student", "b3_noisy-student.h5", "md5:3b29e326"),
        (
            "efficientnet-b1",
            "leondgarse/noisy-student",
            "effnetv1_pretrained/efficientnetv1-b1-noisy_student.h5",
            "md5:8f44bff5",
        ),
        (
            "efficientnet-b8",
            "lukemelas/imagenet-advprop",
            "adv-efficientnet-b8-22a8fe65.pth",
            "sha256-prefix:22a8fe65",
        ),
        (
            "efficientnetv2-s",
            "timm/tf_efficientnetv2_s.in21k_ft_in1k",
            "v0.1-effv2-weights/tf_efficientnetv2_s_21ft1k-d7dafa41.pth",
            "sha256-prefix:d7dafa41",
        ),
    ],
)
def test_url_and_hash(variant, tag, url_end, digits):
    record = find(variant, tag)
    assert record.url.endswith(url_end)
    assert record.hash is None if digits is None else record.hash.startswith(digits)


@pytest.mark.parametrize(
    ("variant", "tag", "mean", "std", "size", "resize", "crop", "labels"),
    [
        ("efficientnet-b1", "imagenet", 123.675, 58.395, 240, "bicubic_legacy", "pad32", 1000),
        ("efficientnet-b1", "imagenet-advprop", 127.5, 127.5, 240, "bicubic_legacy", "pad32", 1000),
        ("efficientnet-lite4", "imagenet", 127, 128, 300, "bilinear_legacy", "pad32", 1000),
        ("efficientnet-edgetpu-s", "imagenet", 127, 128, 224, "bilinear_legacy", "pad32", 1001),
        ("efficientnetv2-b0", "imagenet", 123.675, 58.395, 224, "bicubic_legacy", "pad32", 1000),
        ("efficientnetv2-b0", "imagenet21k-ft1k", 128, 128, 224, "bilinear", "squash", 1000),
        ("efficientnetv2-s", "imagenet", 128, 128, 384, "bilinear", "squash", 1000),
        ("efficientnetv2-s", "imagenet21k", 128, 128, 224, "bilinear", "pad32_floor", 21843),
        ("efficientnet-l2", "noisy-student-475", 123.675, 58.395, 475, "bicubic_legacy", "pad32",
         1000),
        ("efficientnet-b0", "timm/tf_efficientnet_b0.ap_in1k", 127.5, 127.5, 224, "bicubic",
         "fraction", 1000),
    ],
)  # fmt: skip
def test_preprocessing_belongs_to_the_weights(variant, tag, mean, std, size, resize, crop, labels):
    # gen-efficientnet-pytorch#54, pytorch/vision#5450: other preprocessing than in training.
    record = find(variant, tag)
    found = record.preprocessing
    assert (found.mean[0], found.std[0], found.size) == (mean, std, size)
    assert (found.resize_method, found.crop, record.classes) == (resize, crop, labels)


def test_imagenet_means_what_keras_applications_means():
    # james77777778/keras-image-models#52: which weights is 'imagenet'?
    named = {r.variant: r.source for r in list_weights() if r.tag == "imagenet"}
    for variant in ("efficientnet-b0", "efficientnet-b7", "efficientnetv2-l"):
        assert named[variant] == "keras.applications"
    # No such weights were published for these.
    assert not {"efficientnet-b8", "efficientnet-l2", "efficientnetv2-xl"} & set(named)


def test_unknown_tag_lists_the_valid_ones_and_suggests_one():
    # google/automl#1053, #1124, lukemelas/EfficientNet-PyTorch#144: which weights are there?
    with pytest.raises(ValueError, match="Did you mean 'noisy-student'") as error:
        find("efficientnet-b5", "noisy_student")
    for record in list_weights("efficientnet-b5"):
        assert record.tag in str(error.value)


def test_weights_that_were_never_published_are_refused_with_those_that_were():
    # google/automl#1053: V2-XL has no weights of ImageNet-1k alone. Nothing is made up for it.
    with pytest.raises(ValueError, match=r"Its tags: imagenet21k, imagenet21k-ft1k, ") as error:
        find("efficientnetv2-xl", "imagenet")
    assert "efficientnetv2-xl has no weights 'imagenet'" in str(error.value)
    # huggingface/pytorch-image-models#541: NoisyStudent and L2.
    for variant in [f"efficientnet-b{i}" for i in range(8)] + ["efficientnet-l2"]:
        assert find(variant, "noisy-student").source == "official"


def test_every_published_variant_has_a_classifier_with_known_labels():
    # keras-hub#3014, #1747: no head, and no word on what its classes are.
    published = {record.variant for record in list_weights()}
    assert published == VARIANTS.keys() - {"efficientnetv2-s-first"}
    for record in list_weights():
        assert record.url is None or "notop" not in record.url
        assert record.label_map == {1000: "imagenet", 1001: "imagenet-background"}.get(
            record.classes, "imagenet21k"
        )


def test_unknown_variant_is_an_error():
    with pytest.raises(ValueError, match="efficientnetv2-s"):
        list_weights("efficientnetv2s")


def test_a_folder_named_like_a_tag_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    assert lookup("efficientnet-b0", "imagenet").tag == "imagenet"
    assert lookup("efficientnet-b0", "./imagenet") is None


@pytest.mark.parametrize("path", ["missing.h5", "./missing", "/no/such/prefix", "a/b.tar.gz"])
def test_missing_path_is_reported_as_a_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        lookup("efficientnet-b0", path)


def test_names_that_several_files_share_are_known():
    shared = find("efficientnet-b0", "imagenet-advprop").url
    assert not registry.unique_file_name(shared)
    assert registry.unique_file_name(find("efficientnet-b0", "noisy-student").url)
