"""RFC 6455 against the real process, byte by byte: frames that are allowed, and frames that close the socket."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.factories import make_token
from tests.raw_sockets import make_handshake
from tests.service import Service

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x01\xfe\x5a\x80"
AUTH = json.dumps({"auth": {"token": make_token()}, "name": "\u00e4\u20ac\U0001f4f7"}, ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("data"), "http://127.0.0.1:1") as service:
        yield service


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    length: bytes | None = None,
) -> bytes:
    """Return a frame of a client.

    length: the bytes of the length, by default its shortest form.
    """
    size = len(payload)
    if length is None:
        short = bytes([min(size, 126) if size < 65536 else 127])
        length = short + (b"" if size < 126 else struct.pack("!H" if size < 65536 else "!Q", size))
    head = bytes([final << 7 | reserved | opcode, length[0] | (0x80 if mask else 0)]) + length[1:]
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


class Raw:
    """A socket after the upgrade that sends only what the test sends; frames of the server are (opcode, payload)."""

    def __init__(self, service: Service, *headers: str) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(make_handshake(f"{host}:{port}", *headers))
        self.status = int(self._file.readline().split()[1])
        while self._file.readline() not in (b"\r\n", b""):
            pass

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server has closed already
            self._socket.sendall(data)

    def read(self) -> tuple[int, bytes] | None:
        """Return the server's next frame, None when it has closed the connection."""
        try:
            if len(head := self._file.read(2)) < 2:
                return None
        except ConnectionResetError:
            return None
        size = head[1]
        if size == 126:
            (size,) = struct.unpack("!H", self._file.read(2))
        assert head[0] & 0x80 and size < 126 or size <= 65535, "never in pieces, never masked"
        return head[0] & 0x0F, self._file.read(size)

    def read_all(self) -> list[tuple[int, bytes]]:
        """Return the server's frames until it closes the connection."""
        return list(iter(self.read, None))


@pytest.fixture
def raw(service: Service) -> Iterator[Raw]:
    service.remove_lines()
    with Raw(service, f"Authorization: Bearer {make_token()}") as raw:
        assert (frame := raw.read()) is not None and b'"connected"' in frame[1]
        yield raw


BROKEN = {
    "unmasked text": (frame(TEXT, AUTH, mask=None), 1002),
    "unmasked empty text": (frame(TEXT, mask=None), 1002),
    "unmasked binary": (frame(BINARY, b"x", mask=None), 1002),
    "unmasked ping": (frame(PING, mask=None), 1002),
    "unmasked pong": (frame(PONG, mask=None), 1002),
    "unmasked close": (frame(CLOSE, b"\x03\xe8", mask=None), 1002),
    "unmasked piece": (frame(TEXT, AUTH[:9], final=False) + frame(CONTINUATION, AUTH[9:], mask=None), 1002),
    "half a close code": (frame(CLOSE, b"\x03"), 1002),
    "close reason that is not UTF-8": (close(1000, b"\xff"), 1007),
    "close reason that ends in half a character": (close(1000, b"abc\xe2\x82"), 1007),
    "close reason with half a surrogate": (close(1000, b"\xed\xa0\x80"), 1007),
    "bad code and bad reason": (close(1005, b"\xff"), 1002),
    "close of 126 bytes": (close(1000, b"x" * 124), 1002),
    "close in pieces": (frame(CLOSE, b"\x03\xe8", final=False), 1002),
    "ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "ping of 70,000 bytes": (frame(PING, b"x" * 70_000), 1002),
    "ping in pieces": (frame(PING, b"x", final=False), 1002),
    "pong in pieces": (frame(PONG, b"x", final=False) + frame(CONTINUATION, b"x"), 1002),
    "short ping with a long length": (frame(PING, b"x", length=b"\x7e\x00\x01"), 1002),
    "continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
    "unfinished continuation of nothing": (frame(CONTINUATION, b"x", final=False), 1002),
    "continuation after a complete message": (
        frame(TEXT, AUTH[:9], final=False) + frame(CONTINUATION, AUTH[9:]) + frame(CONTINUATION), 1002
    ),
    "text in a message": (frame(TEXT, b"{", final=False) + frame(TEXT, b"}"), 1002),
    "binary in a text": (frame(TEXT, b"{", final=False) + frame(BINARY, b"}", final=False), 1002),
    "length in three bytes that fits in one": (frame(TEXT, b"{}", length=b"\x7e\x00\x02"), 1002),
    "length in nine bytes that fits in three": (
        frame(TEXT, b"x" * 200, length=b"\x7f" + (200).to_bytes(8, "big")), 1002
    ),
    "length with its highest bit": (frame(TEXT, b"{}", length=b"\x7f\x80" + bytes(7)), 1002),
    "a frame too large": (frame(TEXT, b"x" * 16_385), 1009),
    "exabytes announced": (frame(TEXT, b"{}", length=b"\x7f\x7f" + b"\xff" * 7), 1009),
    "too large in pieces": (frame(TEXT, b"x" * 16_000, final=False) + frame(CONTINUATION, b"x" * 400), 1009),
    "text that is not UTF-8": (frame(TEXT, b"\xc3\x28"), 1007),
    "text with an overlong character": (frame(TEXT, b"\xc0\xaf"), 1007),
    "text with half a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "text beyond Unicode": (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "text that ends in half a character": (frame(TEXT, b"ab\xe2\x82"), 1007),
    "first piece that is not UTF-8": (frame(TEXT, b"\xff", final=False), 1007),
    "second piece that is not UTF-8": (
        frame(TEXT, b"\xe2\x82", final=False) + frame(CONTINUATION, b"(", final=False), 1007
    ),
    "pieces that end in half a character": (frame(TEXT, b"\xe2", final=False) + frame(CONTINUATION, b"\x82"), 1007),
    "pieces, ping between, not UTF-8": (
        frame(TEXT, b"\xe2", final=False) + frame(PING) + frame(CONTINUATION, b"\xe2", final=False), 1007
    ),
    "binary": (frame(BINARY, b"\xff"), 4400),
    "binary in pieces": (frame(BINARY, b"\xff", final=False) + frame(CONTINUATION, b"\xfe"), 4400),
}
BROKEN |= {f"reserved bits {bits:#x}": (frame(TEXT, AUTH, reserved=bits), 1002) for bits in (0x10, 0x20, 0x40, 0x70)}
BROKEN |= {f"reserved bit in a {name}": (frame(opcode, reserved=0x40), 1002) for name, opcode in
           (("close", CLOSE), ("ping", PING), ("pong", PONG))}
BROKEN |= {f"opcode {opcode}": (frame(opcode, b"x"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)}
FORBIDDEN_CODES = (0, 1, 500, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 9999, 65535)
BROKEN |= {f"close code {code}": (close(code), 1002) for code in FORBIDDEN_CODES}


@pytest.mark.fault("R14")
@pytest.mark.parametrize(("sent", "code"), BROKEN.values(), ids=BROKEN.keys())
def test_protocol_error_closes_with_its_code(service: Service, raw: Raw, sent: bytes, code: int) -> None:
    """The last frame has the close code; the log has one line for it, without a trace."""
    raw.send(sent)
    *_, last = raw.read_all()
    assert last == (CLOSE, code.to_bytes(2, "big"))
    assert service.wait_log("socket_closed")["code"] == code
    lines = service.find("websocket_protocol_broken")
    assert [(line["level"], line["code"]) for line in lines] == ([("info", code)] if code < 2000 else [])
    assert service.errors() == [] and not any("exception" in line for line in service.lines)


@pytest.mark.fault("R14")
@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4403, 4999])
def test_allowed_close_code_is_answered_with_itself(service: Service, raw: Raw, code: int) -> None:
    """The reason may be in any language and of the greatest length."""
    raw.send(close(code, ("\u20ac" * 41).encode()))
    assert raw.read_all() == [(CLOSE, code.to_bytes(2, "big"))]
    assert service.errors() == []


@pytest.mark.fault("R14")
def test_close_without_a_code_is_answered_without_one(service: Service, raw: Raw) -> None:
    """RFC 6455, section 5.5.1: the answer to a close without a code has none, and later frames are ignored."""
    raw.send(frame(CLOSE) + frame(TEXT, b"after the end") + frame(3))
    assert raw.read_all() == [(CLOSE, b"")]
    assert service.errors() == []


@pytest.mark.parametrize("payload", [b"", b"x", b"\x00\xff" * 62 + b"x", "\u20ac".encode()])
def test_ping_is_answered_with_its_payload(raw: Raw, payload: bytes) -> None:
    """The payload has any bytes, up to 125, and any mask."""
    for mask in (MASK, b"\0\0\0\0", b"\xff\xff\xff\xff"):
        raw.send(frame(PING, payload, mask=mask))
        assert raw.read() == (PONG, payload)


def test_unrequested_pong_is_allowed(raw: Raw) -> None:
    """RFC 6455, section 5.5.3: a pong without a ping gets no answer."""
    raw.send(frame(PONG, b"x") + frame(PING, b"y"))
    assert raw.read() == (PONG, b"y")


@pytest.mark.parametrize("cuts", [(), (1,), (0,), (len(AUTH),), (-7, -6, -5), (-9, -4, -3)], ids=str)
def test_text_in_pieces_is_one_message(service: Service, cuts: tuple[int, ...]) -> None:
    """The message may be cut anywhere, also within a character, with pings between, and sent byte by byte."""
    bounds = [0, *cuts, len(AUTH)]
    pieces = [AUTH[start:end] for start, end in zip(bounds, [*bounds[1:]], strict=False)]
    frames = [
        frame(CONTINUATION if number else TEXT, piece, final=number == len(pieces) - 1)
        for number, piece in enumerate(pieces)
    ]
    with Raw(service) as raw:
        for byte in frame(PING, b"between").join(frames):
            raw.send(bytes([byte]))
        answers = [raw.read() for _ in frames]
        assert answers[:-1] == [(PONG, b"between")] * (len(frames) - 1)
        assert (last := answers[-1]) is not None and b'"connected"' in last[1]


def test_largest_message_is_accepted(service: Service) -> None:
    """A message of 16 KiB is accepted, in one frame or in pieces."""
    text = AUTH + b" " * (16_384 - len(AUTH))
    for sent in (frame(TEXT, text), frame(TEXT, text[:10_000], final=False) + frame(CONTINUATION, text[10_000:])):
        with Raw(service) as raw:
            raw.send(sent)
            assert (answer := raw.read()) is not None and b'"connected"' in answer[1]


@pytest.mark.fault("R14")
@pytest.mark.parametrize(
    "extensions",
    [
        *("permessage-deflate; client_max_window_bits", "permessage-deflate;" * 50),
        *("x;y=", ";", ";;;=,,", "a; b*0*=x", 'x; a="\xff'),
    ],
)
def test_extensions_are_never_accepted(service: Service, extensions: str) -> None:
    """The socket opens without an extension, whatever the header contains."""
    service.remove_lines()
    with Raw(service, f"Authorization: Bearer {make_token()}", f"Sec-WebSocket-Extensions: {extensions}") as raw:
        assert raw.status == 101
        assert (answer := raw.read()) is not None and b'"connected"' in answer[1]
        raw.send(frame(TEXT, AUTH, reserved=0x40))
        assert raw.read_all() == [(CLOSE, (1002).to_bytes(2, "big"))]
    assert service.errors() == []


@pytest.mark.fault("R14")
def test_protocol_error_before_a_token_closes_with_its_code(service: Service) -> None:
    """An unauthenticated client gets the close code too."""
    with Raw(service) as raw:
        raw.send(frame(TEXT, b"\xff"))
        assert raw.read_all() == [(CLOSE, (1007).to_bytes(2, "big"))]


@pytest.mark.fault("R14")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Sec-WebSocket-Key", "x"),
        ("Sec-WebSocket-Key", ""),
        ("Sec-WebSocket-Key", "\xff" * 24),
        ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA"),
        ("Connection", "keep-alive"),
        ("Upgrade", "h2c"),
    ],
)
def test_invalid_handshake_is_refused_in_the_envelope(service: Service, name: str, value: str) -> None:
    """The answer is a 400 with the reason."""
    host, port = service.url.removeprefix("http://").split(":")
    lines = [line for line in make_handshake(host).decode().split("\r\n") if not line.startswith(f"{name}:")]
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall("\r\n".join([lines[0], f"{name}: {value}", *lines[1:]]).encode("latin-1"))
        answer = raw.recv(65536)
        while b"only" not in answer:
            assert (piece := raw.recv(65536)), answer
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400 ") and b"This address speaks WebSocket only" in answer
