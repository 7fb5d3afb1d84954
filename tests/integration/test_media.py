"""GET /media on a real server: which files are served, with which headers, to whom, and for how long."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from pipeline.assets.asset import ImageRef
from pipeline.assets.kinds import HEAD_BYTES, image_type
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.handlers import media
from pipeline.hooks.media_links import MediaLinks
from tests.factories import make_asset, make_image
from tests.integration.media_server import ID, NAME, PNG, Server, folder, make_server, server

__all__ = ["folder", "make_server", "server"]  # fixtures


@pytest.mark.gen_test
async def test_media_serves_an_image_and_then_304(server: Server) -> None:
    """An image has its real type, runs no script, and is not sent to a client that has it."""
    path = f"/media/{ID}/original-1"
    reply = await server.get(path)
    assert (reply.status_code, reply.content, reply.headers["Content-Type"]) == (200, PNG, "image/png")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Content-Security-Policy"] == "default-src 'none'"
    assert "immutable" in reply.headers["Cache-Control"]
    second = await server.get(path, **{"If-None-Match": reply.headers["ETag"]})
    assert (second.status_code, second.content) == (304, b"")
    assert (await server.get(path, **{"If-None-Match": '"other"'})).status_code == 200
    assert (await server.get(path, Range="bytes=0-3")).content == PNG[:4]
    assert (await server.client.head(path)).headers["Content-Length"] == str(len(PNG))


@pytest.mark.parametrize(
    ("path", "remark"),
    [
        (f"{ID}/original-9", "no such file"),
        (ID, "a folder is not listed"),
        (f"{ID}/", "nor with a slash"),
        ("", "nor the root"),
        ("../secret.png", "outside"),
        ("%2e%2e/secret.png", "outside, encoded"),
        ("..%2fsecret.png", "outside, slash encoded too"),
        ("/etc/hostname", "an absolute path"),
        (f"{ID}/linked", "a link that leads outside"),
        (f"{ID}/original-2.png", "the name of an image, the content of none"),
        (f"{ID}/original-1%00.png", "a zero byte"),
        (f"{ID}/{'a' * 300}", "a name over the limit of the filesystem"),
        (f"{ID}/{'a' * 300}.png", "that name with an extension"),
        ("a/" * 3000 + "a", "a path over the limit of the filesystem"),
        (f"{ID}/loop", "a link to itself"),
    ],
)
@pytest.mark.gen_test
async def test_media_serves_only_images_of_the_folder(server: Server, path: str, remark: str) -> None:
    """A path that is no image in the folder gets a 404 in the envelope."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    # Written to the socket, because clients normalise paths before they send them.
    writer.write(f"GET /media/{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 404"), remark
    assert b'"code": "NOT_FOUND"' in body and PNG not in body, remark


@pytest.mark.parametrize(
    ("format", "content_type"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("AVIF", "image/avif"),
        ("HEIF", "image/heic"),
    ],
)
def test_media_knows_every_format_an_upload_may_have(format: str, content_type: str) -> None:
    """The type is read from the bytes, so a stored image needs no extension."""
    assert image_type(make_image(format)[:HEAD_BYTES]) == content_type


@pytest.mark.gen_test
async def test_media_finds_an_image_with_and_without_its_extension(server: Server) -> None:
    """New URLs have no extension, so that no folder is read to make them; old URLs still work."""
    for path in (f"/media/{ID}/original-3", f"/media/{ID}/original-3.png"):
        assert (await server.get(path)).content == PNG
    assert (await server.get(f"/media/{ID}/original-3.jpg")).status_code == 404


@pytest.mark.gen_test
async def test_media_reads_no_folder(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The top folder has an entry for each asset, and any client may ask for a name in it."""
    listed: list[object] = []
    monkeypatch.setattr(os, "listdir", listed.append)
    monkeypatch.setattr(os, "scandir", listed.append)
    assert (await server.get("/media/original")).status_code == 404
    assert (await server.get(f"/media/{ID}/original-3")).status_code == 200
    assert listed == []


@pytest.mark.parametrize(
    ("wanted", "status", "content", "remark"),
    [
        ("bytes=0-3", 206, PNG[:4], "from the start"),
        ("bytes=4-", 206, PNG[4:], "to the end"),
        ("bytes=-5", 206, PNG[-5:], "the last bytes"),
        (f"bytes=0-{len(PNG) * 2}", 206, PNG, "more bytes than the file has"),
        (f"bytes=-{len(PNG) * 2}", 206, PNG, "more of the last bytes than the file has"),
        (f"bytes={len(PNG)}-", 416, None, "behind the end"),
        ("bytes=-0", 416, None, "the last 0 bytes"),
        ("bytes=" + "9" * 4000 + "-", 416, None, "a number of 4000 digits"),
        ("bytes=3-1", 200, PNG, "backwards: no range at all"),
        ("bytes=0-1,3-4", 200, PNG, "several ranges: the complete file is sent"),
        ("lines=0-1", 200, PNG, "another unit"),
        ("bytes=-", 200, PNG, "nothing"),
    ],
)
@pytest.mark.gen_test
async def test_media_answers_ranges(server: Server, wanted: str, status: int, content: bytes, remark: str) -> None:
    """One range is answered, an impossible range is refused in the envelope, and any other text is ignored."""
    reply = await server.get(f"/media/{NAME}", Range=wanted)
    assert reply.status_code == status, remark
    if content is None:
        assert reply.headers["Content-Range"] == f"bytes */{len(PNG)}"
        assert reply.json()["error"]["code"] == "VALIDATION_ERROR"
        return
    assert reply.content == content, remark
    assert int(reply.headers["Content-Length"]) == len(content)
    assert ("Content-Range" in reply.headers) == (status == 206)


@pytest.mark.gen_test
async def test_media_answers_304_to_a_client_that_has_the_image(server: Server, folder: Path) -> None:
    """The tag or the time shows that the client has it; the tag counts more. A range needs the same version."""
    first = await server.get(f"/media/{NAME}")
    tag, time = first.headers["ETag"], first.headers["Last-Modified"]
    assert tag.startswith('"')
    for headers, status in [
        ({"If-None-Match": f'"x", W/{tag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-Modified-Since": time}, 304),
        ({"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Modified-Since": f"Thu, 01 Jan {'9' * 20} 00:00:00 GMT"}, 200),
        ({"Range": "bytes=0-0", "If-Range": f"Thu, 01 Jan 1970 00:00:00 +{'9' * 20}"}, 200),
        ({"If-None-Match": '"x"', "If-Modified-Since": time}, 200),
        ({"Range": "bytes=0-0", "If-Range": tag}, 206),
        ({"Range": "bytes=0-0", "If-Range": time}, 206),
        ({"Range": "bytes=0-0", "If-Range": '"x"'}, 200),
    ]:
        assert (await server.get(f"/media/{NAME}", **headers)).status_code == status, headers
    facts = (folder / NAME).stat()
    os.utime(folder / NAME, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert (await server.get(f"/media/{NAME}")).headers["ETag"] != tag


@pytest.mark.gen_test
async def test_media_head_has_no_body_and_download_has_a_name(server: Server) -> None:
    """HEAD has the headers of GET; a browser saves the image under its name with its extension."""
    head = await server.client.head(f"/media/{NAME}", headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(PNG)))
    assert head.headers["Content-Disposition"] == 'inline; filename="original-1.png"'
    saved = await server.get(f"/media/{NAME}?download")
    assert saved.headers["Content-Disposition"] == 'attachment; filename="original-1.png"'


@pytest.mark.fault("U16")
@pytest.mark.gen_test
async def test_signed_url_works_until_it_expires(make_server: Callable[..., Server], folder: Path) -> None:
    """An expired, forged or missing signature is refused. A cache may store the image until the URL expires."""
    links = MediaLinks(folder, "http://x", 60)
    server = make_server(MediaLinks(folder, "http://x", 60))

    def path(public_id: str = NAME, seconds: int = 60, **changed: str) -> str:
        url = httpx.URL(links.url(public_id, seconds))
        return str(url.copy_merge_params(changed).copy_with(scheme=None, host=None))

    good = await server.get(path())
    assert good.content == PNG
    directives = dict(part.strip().partition("=")[::2] for part in good.headers["Cache-Control"].split(","))
    assert 0 < int(directives["max-age"]) <= 61 and "immutable" not in directives
    assert (await server.get(path(), Range="bytes=1-3")).content == PNG[1:4]
    assert (await server.get(path(), **{"If-None-Match": good.headers["ETag"]})).status_code == 304
    assert [(await server.client.head(each)).status_code for each in (path(), path(seconds=-1))] == [200, 403]
    query = dict(parse_qsl(urlsplit(path()).query))
    other = str(httpx.URL(f"/media/{ID}/original-3", params=query))
    later = path(expires=str(int(query["expires"]) + 1))
    forged = [path(seconds=-1), path(signature="x"), path(expires="x"), path(expires="9" * 400), later, other]
    for each in [*forged, path(signature="\xe9"), f"/media/{NAME}", f"/media/{ID}/missing"]:
        reply = await server.get(each)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "FORBIDDEN"), each
    assert (await server.get(path(f"{ID}/missing"))).status_code == 404
    key = folder / ".key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert (await server.get("/media/.key")).status_code == 404


@pytest.mark.fault("U12")
@pytest.mark.gen_test
async def test_old_url_of_a_moved_image_redirects(server: Server, store: SqliteAssetStore, folder: Path) -> None:
    """The old URL redirects to the storage that the asset names; an image that the asset does not name gets a 404."""
    moved = make_asset(original=ImageRef("memory", f"{ID}/original-9"), id=ID)
    await store.create(moved)
    reply = await server.get(f"/media/{ID}/original-9.jpg")
    assert (reply.status_code, reply.headers["Cache-Control"]) == (302, "no-store")
    assert reply.headers["Location"] == f"https://images.example/{ID}/original-9"
    assert (await server.get(f"/media/{ID}/original-8.jpg")).status_code == 404


@pytest.mark.fault("U28")
@pytest.mark.gen_test
async def test_client_that_reads_nothing_is_cut_off(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service closes the connection and the file of the client."""
    monkeypatch.setattr(media, "PIECE_SECONDS", 0.2)
    large = folder / ID / "original-4.png"
    with large.open("wb") as file:
        file.write(PNG)
        file.truncate(64 * 1024 * 1024)
    writers = []
    for _ in range(5):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, server.address)
        request = f"GET /media/{ID}/original-4 HTTP/1.1\r\nHost: x\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(sock, request.encode())
        writers.append(sock)
    async with asyncio.timeout(15):
        while not (was_open := open_descriptors(large)):
            await asyncio.sleep(0.01)
        while open_descriptors(large):
            await asyncio.sleep(0.01)
    assert was_open
    for sock in writers:
        sock.close()
    assert (await server.get(f"/media/{NAME}")).content == PNG


def open_descriptors(path: Path) -> int:
    """Return how many descriptors of this process lead to the file."""
    descriptors = Path("/proc/self/fd")
    found: list[Any] = []
    for each in os.listdir(descriptors):
        try:
            found.append(os.readlink(descriptors / each) == str(path))
        except FileNotFoundError:
            continue
    return sum(found)
