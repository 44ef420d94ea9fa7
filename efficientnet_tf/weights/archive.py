"""Safe extraction of downloaded archives."""

from __future__ import annotations

import gzip
import lzma
import os
import pathlib
import shutil
import stat
import tarfile
import tempfile
import zlib

from efficientnet_tf.weights.source import WeightsError

MAX_BYTES = 32 * 2**30  # L2 with raw values, averages and optimizer slots is 10 GB
MAX_MEMBERS = 10_000

_DAMAGED = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    FileExistsError,  # two members of one name
    NotADirectoryError,  # a file used as a directory
)


def extract(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> pathlib.Path:
    """Unpacks a tar archive that is not trusted.

    Only plain files and directories below `folder` are made. Nothing is left of an archive that is
    refused or damaged: it is unpacked beside `folder` under a temporary name and then renamed.

    Args:
        archive: a tar file, compressed or not.
        folder: where to; must not exist yet.
        max_bytes: of all files together.
        max_members: files and directories.

    Returns:
        `folder`.

    Raises:
        WeightsError: absolute names, "..", links, devices, too much or damaged content.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with tarfile.open(archive, "r:*") as tar:
            total = 0
            for count, member in enumerate(tar, start=1):
                total += member.size
                if total > max_bytes or count > max_members:
                    raise WeightsError(
                        f"{archive} unpacks to more than {max_bytes:,} bytes or {max_members:,} "
                        "files; refused."
                    )
                _extract_member(tar, member, temporary, str(archive))
            # tarfile stops at the last member; gzip's checksum is behind it.
            while tar.fileobj is not None and tar.fileobj.read(2**20):
                pass
        os.replace(temporary, folder)
    except _DAMAGED as error:
        raise WeightsError(f"{archive} is damaged or not a tar archive: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _extract_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, folder: pathlib.Path, archive: str
) -> None:
    name = member.name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ":" in name or ".." in parts or "\0" in name:
        raise WeightsError(f"{archive} holds {member.name!r}, a path out of the archive; refused.")
    if not (member.isreg() or member.isdir()):
        kind = "link" if member.issym() or member.islnk() else "device or special file"
        raise WeightsError(f"{archive} holds {member.name!r}, a {kind}; refused.")
    target = folder.joinpath(*parts)
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    if content is None:
        raise WeightsError(f"{archive} holds {member.name!r} without content; refused.")
    with content, open(target, "xb") as file:
        shutil.copyfileobj(content, file, 2**20)
    target.chmod(stat.S_IRUSR | stat.S_IWUSR)
    if target.stat().st_size != member.size:
        raise WeightsError(f"{archive}: {member.name!r} is cut short.")
