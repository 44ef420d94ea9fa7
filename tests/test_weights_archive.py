"""Archives that are not trusted unpack below their folder, or not at all."""

import io
import tarfile

import pytest

from efficientnet_tf.weights.archive import extract
from efficientnet_tf.weights.source import WeightsError


def _archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _special(name, kind, linkname=""):
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = linkname
    return member


def test_unpacks_files_and_folders(tmp_path):
    path = _archive(tmp_path / "a.tgz", ("model/a", b"one"), ("./model/sub/b", b"two"))
    folder = extract(path, tmp_path / "out")
    assert (folder / "model/a").read_bytes() == b"one"
    assert (folder / "model/sub/b").read_bytes() == b"two"


@pytest.mark.parametrize(
    "member",
    [
        "../evil",
        "model/../../evil",
        "/tmp/evil",
        "..\\evil",
        "C:\\evil",
        _special("evil", tarfile.SYMTYPE, "/etc/passwd"),
        _special("evil", tarfile.LNKTYPE, "good"),
        _special("evil", tarfile.CHRTYPE),
        _special("evil", tarfile.BLKTYPE),
        _special("evil", tarfile.FIFOTYPE),
    ],
    ids=lambda member: getattr(member, "type", member),
)
def test_refuses_what_leaves_the_folder_and_leaves_nothing(tmp_path, member):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = _archive(tmp_path / "a.tgz", ("good", b"x"), (member, b""))
    with pytest.raises(WeightsError, match="refused"):
        extract(path, inside / "out")
    assert list(inside.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tgz", "inside"]


def test_a_link_can_not_be_written_through(tmp_path):
    link = _special("model", tarfile.SYMTYPE, str(tmp_path))
    path = _archive(tmp_path / "a.tgz", (link, b""), ("model/evil", b"x"))
    with pytest.raises(WeightsError, match="link"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(("bytes_", "members"), [(5, 100), (100, 2)])
def test_refuses_too_much(tmp_path, bytes_, members):
    path = _archive(tmp_path / "a.tgz", ("a", b"123"), ("b", b"123"), ("c", b""))
    with pytest.raises(WeightsError, match="more than"):
        extract(path, tmp_path / "out", max_bytes=bytes_, max_members=members)
    assert not (tmp_path / "out").exists()


def test_damaged_archives_are_an_error(tmp_path):
    path = _archive(tmp_path / "a.tgz", ("a", bytes(range(256)) * 4000))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"not an archive", content[:-8] + b"x" * 8):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="damaged"):
            extract(path, tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tgz"]


def test_two_members_of_one_name_are_an_error(tmp_path):
    path = _archive(tmp_path / "a.tgz", ("a", b"1"), ("a", b"2"))
    with pytest.raises(WeightsError, match="damaged"):
        extract(path, tmp_path / "out")
