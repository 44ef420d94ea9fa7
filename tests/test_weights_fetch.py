"""Downloads against a real server on loopback that cuts, corrupts, redirects and lies."""

import contextlib
import hashlib
import http.server
import json
import subprocess
import sys
import threading
import urllib.request

import pytest

from efficientnet_tf.weights import fetch
from efficientnet_tf.weights.fetch import FetchError

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several of the chunks that are read at a time
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`; what the first part of the path asks for goes wrong."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        how = self.path.split("/")[1]
        handle = getattr(self, f"_{how.replace('-', '_')}", self._file)
        with contextlib.suppress(ConnectionError):
            handle()
        self.close_connection = True

    def _file(self, *, cut=None, length=None, etag='"1"', extra=()):
        content, start, status = self.server.content, 0, 200
        wanted = self.headers.get("Range")
        if wanted and etag and self.headers.get("If-Range") == etag:
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(status)
        if status == 206:
            total = len(content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if length != "none":
            self.send_header("Content-Length", str(length or len(content) - start))
        if etag:
            self.send_header("ETag", etag)
            self.send_header("Accept-Ranges", "bytes")
        for name, value in extra:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[start : len(content) if cut is None else cut])

    def _cut_once(self):
        self._file(cut=None if len(self.server.requests) > 1 else len(CONTENT) // 2)

    def _cut_always(self):
        self._file(cut=len(CONTENT) // 2)

    def _cut_no_ranges(self):
        self._file(cut=len(CONTENT) // 2, etag=None)

    def _changes(self):  # another file after the first request, which is cut
        first = len(self.server.requests) == 1
        self._file(cut=len(CONTENT) // 2 if first else None, etag='"1"' if first else '"2"')

    def _claims_more(self):
        self._file(length=len(CONTENT) + 1000)

    def _claims_less(self):
        self._file(length=len(CONTENT) - 1000)

    def _no_length(self):
        self._file(length="none")

    def _compressed(self):
        self._file(extra=[("Content-Encoding", "gzip")])

    def _missing(self):
        self.send_error(404)

    def _fails_once(self):
        if len(self.server.requests) == 1:
            self.send_error(503)
        else:
            self._file()

    def _redirect(self):
        self._to(f"/file/{self.path.rsplit('/', 1)[1]}")

    def _redirect_to_file(self):
        self._to("file:///etc/passwd")

    def _redirect_to_ftp(self):
        self._to("ftp://127.0.0.1/a.bin")

    def _to(self, target):
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.content, running.requests = CONTENT, []
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("EFFICIENTNET_TF_MIRROR", raising=False)
    monkeypatch.setenv("EFFICIENTNET_TF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _left(cache):
    """Names of the cache's files, without locks."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


@pytest.mark.parametrize(
    "digits", [SHA256, MD5, "sha256-prefix:" + SHA256.removeprefix("sha256:")[:8]]
)
def test_downloads_once_and_verifies(server, cache, digits):
    url = f"{server.url}/file/a.bin"
    path = fetch.fetch(url, digits)
    assert path.read_bytes() == CONTENT
    assert cache in path.parents
    assert fetch.fetch(url, digits) == path
    assert len(server.requests) == 1
    assert _left(cache) == ["a.bin"]


def test_cache_dir_argument_comes_before_the_variable(server, cache, tmp_path):
    path = fetch.fetch(f"{server.url}/file/a.bin", SHA256, cache_dir=tmp_path / "other")
    assert tmp_path / "other" in path.parents
    assert not cache.exists()


def test_a_cut_download_is_resumed_where_it_was_cut(server, cache):
    path = fetch.fetch(f"{server.url}/cut-once/a.bin", SHA256)
    assert path.read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, f"bytes={len(CONTENT) // 2}-"]
    assert _left(cache) == ["a.bin"]


def test_the_next_call_resumes_what_stayed_incomplete(server, cache, monkeypatch):
    url = f"{server.url}/cut-once/a.bin"
    monkeypatch.setattr(fetch, "_ATTEMPTS", 1)
    with pytest.raises(FetchError, match=r"(sent|after).*a\.bin\.part is kept"):
        fetch.fetch(url, SHA256)
    assert _left(cache) == ["a.bin.part", "a.bin.part.json"]
    assert fetch.fetch(url, SHA256).read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={len(CONTENT) // 2}-"
    assert _left(cache) == ["a.bin"]


def test_what_can_not_be_resumed_is_not_kept(server, cache):
    with pytest.raises(FetchError, match="2,560,000 of 5,120,000"):
        fetch.fetch(f"{server.url}/cut-no-ranges/a.bin", SHA256)
    assert [r for _, r in server.requests] == [None, None, None]
    assert _left(cache) == []


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, cache):
    server.content = CONTENT
    path = fetch.fetch(f"{server.url}/changes/a.bin", SHA256)
    # The second request asked for the rest of version "1" and got all of version "2".
    assert server.requests[1][1] is not None
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["file", "claims-less"])
def test_wrong_content_is_discarded(server, cache, how):
    if how == "file":
        server.content = CONTENT[:-1] + b"x"
    with pytest.raises(FetchError, match=r"is not the file published.*sha256.*expected"):
        fetch.fetch(f"{server.url}/{how}/a.bin", SHA256)
    assert _left(cache) == []


def test_a_corrupt_partial_file_does_not_get_through(server, cache, monkeypatch):
    url = f"{server.url}/cut-once/a.bin"
    monkeypatch.setattr(fetch, "_ATTEMPTS", 1)
    with pytest.raises(FetchError):
        fetch.fetch(url, SHA256)
    part = next(cache.rglob("*.part"))
    part.write_bytes(b"x" + part.read_bytes()[1:])
    with pytest.raises(FetchError, match="not the file published"):
        fetch.fetch(url, SHA256)
    assert _left(cache) == []
    assert fetch.fetch(url, SHA256).read_bytes() == CONTENT


def test_a_partial_file_longer_than_the_file_starts_over(server, cache, monkeypatch):
    url = f"{server.url}/cut-always/a.bin"
    monkeypatch.setattr(fetch, "_ATTEMPTS", 1)
    with pytest.raises(FetchError):
        fetch.fetch(url, SHA256)
    next(cache.rglob("*.part")).write_bytes(CONTENT * 2)
    monkeypatch.setattr(fetch, "_ATTEMPTS", 2)
    monkeypatch.setattr(_Handler, "_cut_always", _Handler._file)
    assert fetch.fetch(url, SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("claims-more", "5,120,000 of 5,121,000"),
        ("no-length", "does not say how long"),
        ("compressed", "compressed"),
        ("missing", "404"),
        ("redirect-to-file", "not allowed"),
        ("redirect-to-ftp", "Only http and https"),
    ],
)
def test_bad_answers_are_errors(server, cache, how, message):
    with pytest.raises(FetchError, match=message):
        fetch.fetch(f"{server.url}/{how}/a.bin")
    assert "a.bin" not in _left(cache)
    assert "a.bin.sha256" not in _left(cache)


def test_a_server_that_fails_once_is_asked_again(server, cache):
    assert fetch.fetch(f"{server.url}/fails-once/a.bin", SHA256).read_bytes() == CONTENT


def test_redirects_are_followed(server, cache):
    assert fetch.fetch(f"{server.url}/redirect/a.bin", SHA256).read_bytes() == CONTENT
    assert server.requests[1][0] == "/file/a.bin"


@pytest.mark.parametrize("url", ["http://host/a.bin", "HTTP://host/a.bin"])
def test_redirects_do_not_leave_encryption(url):
    request = urllib.request.Request("https://host/a.bin")
    with pytest.raises(FetchError, match="unencrypted"):
        fetch._Redirect().redirect_request(request, None, 302, "Found", {}, url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "a.bin"])
def test_other_schemes_are_refused(cache, url):
    with pytest.raises(ValueError, match="http"):
        fetch.fetch(url)


def test_an_unreachable_server_is_an_error_with_its_url(server, cache):
    url = f"{server.url}/file/a.bin"
    server.shutdown()
    server.server_close()
    with pytest.raises(FetchError, match="can not be reached"):
        fetch.fetch(url, SHA256)


def test_first_hash_is_recorded_and_checked_later(server, cache):
    url = f"{server.url}/file/a.bin"
    path = fetch.fetch(url)
    assert _left(cache) == ["a.bin", "a.bin.sha256"]
    assert SHA256.removeprefix("sha256:") in path.with_name("a.bin.sha256").read_text()
    path.write_bytes(CONTENT[:-1] + b"x")  # changed in the cache
    with pytest.raises(FetchError, match="first download"):
        fetch.fetch(url)
    path.unlink()
    server.content = CONTENT + b"x"  # changed at the source
    with pytest.raises(FetchError, match="first download"):
        fetch.fetch(url)
    server.content = CONTENT
    assert fetch.fetch(url).read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_noticed(server, cache):
    url = f"{server.url}/file/a.bin"
    fetch.fetch(url, MD5).write_bytes(b"damaged")
    with pytest.raises(FetchError, match="Delete it to get it again"):
        fetch.fetch(url, MD5)


@pytest.mark.parametrize("where", ["a.bin", "b/a.bin", "some/b/a.bin", "host.org/some/b/a.bin"])
def test_mirror_is_used_instead_of_the_network(cache, tmp_path, monkeypatch, where):
    file = tmp_path / "mirror" / where
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    monkeypatch.setenv("EFFICIENTNET_TF_MIRROR", str(tmp_path / "mirror"))
    assert fetch.fetch("https://host.org/some/b/a.bin", SHA256) == file
    with pytest.raises(FetchError, match="not the file published"):
        fetch.fetch("https://host.org/some/b/a.bin", SHA256[:-1] + "0")
    assert file.read_bytes() == CONTENT


def test_mirror_does_not_mix_up_files_of_one_name(cache, tmp_path, monkeypatch):
    (tmp_path / "mirror/advprop").mkdir(parents=True)
    (tmp_path / "mirror/b0.tgz").write_bytes(b"which one?")
    monkeypatch.setenv("EFFICIENTNET_TF_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(FetchError, match=r"nothing is downloaded.*advprop/b0\.tgz"):
        fetch.fetch("https://host.org/advprop/b0.tgz", by_name=False)
    (tmp_path / "mirror/advprop/b0.tgz").write_bytes(b"AdvProp")
    path = fetch.fetch("https://host.org/advprop/b0.tgz", by_name=False)
    assert path.read_bytes() == b"AdvProp"


def test_files_of_one_name_do_not_meet_in_the_cache(server, cache):
    first = fetch.fetch(f"{server.url}/file/one/a.bin", SHA256)
    second = fetch.fetch(f"{server.url}/file/two/a.bin", SHA256)
    assert first != second


def test_concurrent_processes_download_once(server, cache):
    code = (  # the module alone: the package would import Keras, four times
        "import runpy, sys; module = runpy.run_path(sys.argv[1]);"
        "print(module['file_hash'](module['fetch'](*sys.argv[2:])))"
    )
    url = f"{server.url}/cut-once/a.bin"
    command = [sys.executable, "-c", code, fetch.__file__, url, SHA256]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [process.communicate(timeout=60)[0].strip() for process in running]
    assert printed == [SHA256.removeprefix("sha256:")] * 4
    assert len(server.requests) == 2  # one download, cut once
    assert _left(cache) == ["a.bin"]


@pytest.mark.parametrize("bad", ["md5:123", "sha1:" + "0" * 40, "0" * 64, "sha256:" + "G" * 64])
def test_malformed_hashes_are_refused(bad):
    with pytest.raises(ValueError, match="hexadecimal"):
        fetch.check_hash(bad)


def test_resume_state_names_the_version(server, cache, monkeypatch):
    monkeypatch.setattr(fetch, "_ATTEMPTS", 1)
    with pytest.raises(FetchError):
        fetch.fetch(f"{server.url}/cut-always/a.bin", SHA256)
    state = next(cache.rglob("*.part.json"))
    assert json.loads(state.read_text()) == {"validator": '"1"'}
