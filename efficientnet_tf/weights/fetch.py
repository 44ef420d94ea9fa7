"""Downloads into a cache: resumable, verified, safe when several processes want the same file.

A file appears in the cache under its final name only when it is complete and verified. Until then
it is `NAME.part`, written by the one process that holds the lock `NAME.lock`. For files that were
published without a hash, `NAME.sha256` records the hash of the first download; every later use is
checked against it (trust on first use).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from absl import logging

CACHE_VARIABLE = "EFFICIENTNET_TF_HOME"
MIRROR_VARIABLE = "EFFICIENTNET_TF_MIRROR"

_CHUNK = 2**20  # bytes
_TIMEOUT = 60.0  # seconds without a byte
_ATTEMPTS = 3
_HEX_DIGITS = {"md5": 32, "sha256": 64, "sha256-prefix": 8}


class FetchError(OSError):
    """A file could not be obtained, or is not the published one."""


class _Incomplete(Exception):
    """The connection ended before the file did; what came is worth keeping."""


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The cache: the argument, else $EFFICIENTNET_TF_HOME, else ~/.cache/efficientnet_tf."""
    folder = cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/efficientnet_tf"
    return _local(folder, "The cache of weights")


def _local(folder: str | os.PathLike[str], what: str) -> pathlib.Path:
    if "://" in os.fspath(folder):
        raise ValueError(f"{what} must be local. Received: {folder}")
    return pathlib.Path(folder).expanduser()


def check_hash(expected: str) -> tuple[str, str]:
    """Splits "md5:…", "sha256:…" or "sha256-prefix:…" (8 digits) into algorithm and digits.

    Raises:
        ValueError: not of this form.
    """
    algorithm, _, digits = expected.partition(":")
    if not re.fullmatch(f"[0-9a-f]{{{_HEX_DIGITS.get(algorithm, 0)}}}", digits) or not digits:
        raise ValueError(
            'A hash must be "md5:" and 32, "sha256:" and 64 or "sha256-prefix:" and 8 hexadecimal '
            f"digits in lower case. Received: {expected!r}"
        )
    return algorithm, digits


def file_hash(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """Hash of a file's content, hexadecimal; algorithm as in `check_hash`."""
    digest = hashlib.new(algorithm.removesuffix("-prefix"))
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    digits = digest.hexdigest()
    return digits[: _HEX_DIGITS[algorithm]]


def find_local(
    url: str,
    *,
    names: tuple[str, ...] = (),
    by_name: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path | None:
    """Looks for a file in the cache and in the mirror folder, without downloading or verifying.

    Args:
        url: where it was published.
        names: further paths below the mirror folder to look at.
        by_name: whether the mirror may hold it under its bare name. Must be False where another
            file was published under the same name; then at least the last folder of the URL has to
            be there too (`ckptsaug/efficientnet-b0.tar.gz`).
        cache_dir: see `cache_folder`.

    Returns:
        The file, or None.
    """
    cached = _cached_path(url, cache_dir)
    if cached.is_file():
        return cached
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return None
    for name in (*names, *_mirror_names(url, by_name)):
        candidate = _local(mirror, f"${MIRROR_VARIABLE}") / name
        if candidate.is_file():
            return candidate
    return None


def fetch(
    url: str,
    expected_hash: str | None = None,
    *,
    names: tuple[str, ...] = (),
    by_name: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Returns a local, verified copy of a published file, downloading it if need be.

    With $EFFICIENTNET_TF_MIRROR set, nothing is downloaded: the file must be in the cache or in
    that folder, under its URL's path, the end of it, or its name.

    Args:
        url: http or https.
        expected_hash: see `check_hash`; None where none was published.
        names: see `find_local`.
        by_name: see `find_local`.
        cache_dir: see `cache_folder`.

    Raises:
        FetchError: the file can not be obtained, or is not the expected one. Nothing is left under
            the final name; a cut download stays as `NAME.part` if the server allows to resume it.
        ValueError: not an http or https URL, or a malformed hash.
    """
    _check_scheme(url)
    if expected_hash is not None:
        check_hash(expected_hash)
    target = _cached_path(url, cache_dir)
    local = find_local(url, names=names, by_name=by_name, cache_dir=cache_dir)
    if local is None and os.environ.get(MIRROR_VARIABLE):
        looked = ", ".join((*names, *_mirror_names(url, by_name)))
        raise FetchError(
            f"{MIRROR_VARIABLE}={os.environ[MIRROR_VARIABLE]} does not hold {url}, and with it set "
            f"nothing is downloaded. Looked for: {looked}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target):
        if local is None and not target.is_file():
            _download(url, target, expected_hash)
        else:
            _verify(local or target, expected_hash, target, url)
    return local or target


def _cached_path(url: str, cache_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    host, parts = _split(url)
    return cache_folder(cache_dir).joinpath(host, *parts)


def _mirror_names(url: str, by_name: bool) -> tuple[str, ...]:
    host, parts = _split(url)
    ends = ["/".join(parts[start:]) for start in range(len(parts) if by_name else len(parts) - 1)]
    return (f"{host}/{ends[0]}", *ends) if ends else (f"{host}/{parts[-1]}",)


def _split(url: str) -> tuple[str, list[str]]:
    """Host and path of a URL as names that are safe in a file system."""
    parsed = urllib.parse.urlsplit(url)
    parts = [re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in parsed.path.split("/")]
    parts = [part for part in parts if part.strip(".")]
    if not parsed.hostname or not parts:
        raise ValueError(f"A URL must name a host and a file. Received: {url!r}")
    return re.sub(r"[^A-Za-z0-9._-]", "_", parsed.netloc.rsplit("@", 1)[-1]), parts


def _verify(path: pathlib.Path, expected_hash: str | None, target: pathlib.Path, url: str) -> None:
    """Compares a file with the published hash, or with that of the first download.

    Args:
        path: the file.
        expected_hash: see `fetch`.
        target: its place in the cache, beside which the hash of the first download is.
        url: where it comes from.
    """
    record = target.with_name(target.name + ".sha256")
    if expected_hash is not None:
        algorithm, digits = check_hash(expected_hash)
        origin = "the published one"
    elif record.is_file():
        algorithm, digits = "sha256", record.read_text().split()[0]
        origin = f"that of the first download (in {record}; delete it if the change is intended)"
    else:
        _write(record, f"{file_hash(path)}  {url}\n")
        logging.info("%s: no hash is published; recorded the one of this file", path)
        return
    found = file_hash(path, algorithm)
    remedy = "It is discarded." if path.suffix == ".part" else "Delete it to get it again."
    if found != digits:
        raise FetchError(
            f"{path} is not the file published as {url}: its {algorithm} is {found}, expected "
            f"{digits}, {origin}. {remedy}"
        )


def _download(url: str, target: pathlib.Path, expected_hash: str | None) -> None:
    part = target.with_name(target.name + ".part")
    state = target.with_name(target.name + ".part.json")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _transfer(url, part, state)
            break
        except _Incomplete as error:
            resumable = state.is_file()
            if attempt < _ATTEMPTS:
                logging.warning("%s; attempt %d of %d failed", error, attempt, _ATTEMPTS)
                continue
            if not resumable:
                _remove(part)
            kept = f" {part} is kept and resumed by the next call." if resumable else ""
            raise FetchError(f"Download failed {_ATTEMPTS} times: {error}.{kept}") from error
        except BaseException:
            if not state.is_file():
                _remove(part)
            raise
    try:
        # The part is judged before it gets its name: what is there under the name is always good.
        _verify(part, expected_hash, target, url)
        os.replace(part, target)
    finally:
        _remove(part, state)


def _transfer(url: str, part: pathlib.Path, state: pathlib.Path) -> None:
    """Fills `part`, from where it ends if the server still has the same file."""
    offset, validator = _resume_point(part, state)
    headers = {"Accept-Encoding": "identity", "User-Agent": "efficientnet_tf"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # the part is longer than the file: start over
            _remove(part, state)
            raise _Incomplete(f"{url} can not be resumed at byte {offset:,}") from error
        if error.code >= 500:
            raise _Incomplete(f"{url} answers {error.code} {error.reason}") from error
        raise FetchError(f"{url} answers {error.code} {error.reason}.") from error
    except urllib.error.URLError as error:
        raise _Incomplete(f"{url} can not be reached: {error.reason}") from error
    except (http.client.HTTPException, OSError) as error:
        if isinstance(error, FetchError):
            raise
        raise _Incomplete(f"{url} can not be reached: {error}") from error
    with response:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError(f"{url} is sent compressed, although it must not be.")
        if response.status != 206:
            offset = 0
        total = _total(response, offset, url)
        _remember(response, state)
        size = "unknown size" if total is None else f"{total:,} bytes"
        logging.info("Downloading %s (%s) from byte %d", url, size, offset)
        _copy(response, part, offset, total, url)


def _copy(response, part: pathlib.Path, offset: int, total: int | None, url: str) -> None:
    received = offset
    with open(part, "r+b" if offset else "wb") as file:
        file.seek(offset)
        file.truncate()
        while block := _read_block(response, url, received):
            file.write(block)
            received += len(block)
    if total is not None and received < total:
        raise _Incomplete(f"{url} sent {received:,} of {total:,} bytes")


def _read_block(response, url: str, received: int) -> bytes:
    try:
        return response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Incomplete(f"The connection to {url} broke after byte {received:,}") from error


def _total(response, offset: int, url: str) -> int | None:
    """Size of the whole file in bytes; None where the encoding itself tells the end."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if not match or int(match.group(1)) != offset:
            raise FetchError(
                f"{url}: asked to resume at byte {offset:,}, got Content-Range: "
                f"{response.headers.get('Content-Range')!r}."
            )
        return int(match.group(2))
    length = response.headers.get("Content-Length")
    if length is None and not response.chunked:
        raise FetchError(f"{url} does not say how long it is, so a cut could not be noticed.")
    return None if length is None else int(length)


def _remember(response, state: pathlib.Path) -> None:
    """Keeps what is needed to resume: only with a validator is a resumed file one file."""
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
    ranges = response.headers.get("Accept-Ranges") == "bytes" or response.status == 206
    if validator and ranges and not validator.startswith("W/"):
        _write(state, json.dumps({"validator": validator}))
    else:
        _remove(state)


def _resume_point(part: pathlib.Path, state: pathlib.Path) -> tuple[int, str]:
    if part.is_file() and state.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return part.stat().st_size, str(json.loads(state.read_text())["validator"])
    return 0, ""


class _Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        schemes = [urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl)]
        if schemes == ["https", "http"]:
            raise FetchError(f"{req.full_url} redirects to an unencrypted URL, {newurl}.")
        try:
            _check_scheme(newurl)
        except ValueError as error:
            raise FetchError(f"{req.full_url} redirects elsewhere: {error}") from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request):
    return urllib.request.build_opener(_Redirect).open(request, timeout=_TIMEOUT)


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"Only http and https URLs can be downloaded. Received: {url!r}")


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _remove(*paths: pathlib.Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(target: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time work on a cached file; the system frees a dead one's lock."""
    with open(target.with_name(target.name + ".lock"), "a+b") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            while True:
                with contextlib.suppress(OSError):
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
                    break
                time.sleep(0.2)
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
