"""Width and height of an encoded picture from its bytes, without decoding it.

A few kilobytes of PNG can hold a hundred megapixels, and a decoder asks for the memory before it
sees that the file is a bomb. Formats are told apart by their first bytes as TensorFlow tells them
(core/kernels/image/decode_image_op.cc), which also decodes every frame of an animation before it
returns the first: all frames count.
"""

import dataclasses
import re
import struct

_MAX_SCANS = 500  # of a progressive JPEG: each costs a few bytes, and a pass over all pixels
_MAX_BLOCKS = 500_000  # of a GIF or JPEG: more are a way to keep this module busy
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\xff])", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Size:
    """Size of a picture.

    Attributes:
        kind: "JPEG", "PNG", "GIF", "BMP" or "WebP".
        width: pixels.
        height: pixels.
        frames: how many are decoded.
    """

    kind: str
    width: int
    height: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return self.width * self.height * self.frames


def size(content: bytes) -> Size | None:
    """Reads the size of a picture.

    Args:
        content: of the file, or anything else.

    Returns:
        None for what does not start like a picture.

    Raises:
        ValueError: it starts like a picture and its size cannot be found, it is made to keep a
            decoder busy, or it is JPEG XL, whose memory the size does not tell.
    """
    for start, kind, read in _FORMATS:
        if content.startswith(start):
            try:
                return read(content)
            except (struct.error, IndexError):
                raise ValueError(f"the {kind} is cut off before it tells its size") from None
    return None


def _jpeg(content: bytes) -> Size:
    """Goes from marker to marker as libjpeg does, over rubbish between them, to the first scan."""
    found = []
    at = 2
    for _ in range(_MAX_BLOCKS):
        match = _MARKER.search(content, at)
        if match is None:
            break
        marker, at = match[1][0], match.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", content, at + 3)
            found.append((width, height))
            if marker in _PROGRESSIVE and content.count(b"\xff\xda") > _MAX_SCANS:
                raise ValueError(f"the JPEG has more than {_MAX_SCANS} scans")
        at += max(2, struct.unpack_from(">H", content, at)[0])
    else:
        raise ValueError(f"the JPEG has more than {_MAX_BLOCKS} segments")
    if not found:
        raise IndexError
    return Size("JPEG", *max(found, key=lambda size: size[0] * size[1]))


def _jpeg_xl(content: bytes) -> Size:
    raise ValueError("JPEG XL is not accepted. Send JPEG, PNG, GIF, BMP or WebP")


def _png(content: bytes) -> Size:
    if content[12:16] != b"IHDR":
        raise ValueError("the PNG does not start with its header")
    return Size("PNG", *struct.unpack_from(">II", content, 16))


def _gif(content: bytes) -> Size:
    """The canvas, or what the largest frame reaches to, times the frames."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + _color_table(flags)
    frames = 0
    blocks = 0
    # A GIF may end anywhere: TensorFlow decodes the frames that it got.
    while at < len(content) and content[at] in b"\x21\x2c":
        if content[at] == 0x21:  # extension: label, then sub-blocks
            at += 2
        else:
            if at + 10 > len(content):
                break
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", content, at + 1)
            width, height = max(width, left + wide), max(height, top + high)
            frames += 1
            at += 10 + _color_table(flags) + 1
        while at < len(content) and content[at]:
            at += 1 + content[at]
            blocks += 1
            if blocks > _MAX_BLOCKS:
                raise ValueError(f"the GIF has more than {_MAX_BLOCKS} blocks")
        at += 1
        blocks += 1
    return Size("GIF", width, height, max(1, frames))


def _color_table(flags: int) -> int:
    """Bytes of a GIF's color table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _bmp(content: bytes) -> Size | None:
    # Text may start with BM. It has no byte 0 behind the depth.
    if len(content) < 30 or int.from_bytes(content[28:30], "little") not in (1, 4, 8, 16, 24, 32):
        return None
    width, height = struct.unpack_from("<ii", content, 18)
    return Size("BMP", abs(width), abs(height))


def _webp(content: bytes) -> Size | None:
    if content[8:12] != b"WEBP":
        return None  # another RIFF file, such as sound
    kind = content[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return Size("WebP", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return Size("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        raise IndexError
    flags, low_width, high_width, low_height, high_height = struct.unpack_from(
        "<B3xHBHB", content, 20
    )
    width = 1 + low_width + (high_width << 16)
    height = 1 + low_height + (high_height << 16)
    frames = content.count(b"ANMF") if flags & 2 else 1
    return Size("WebP", width, height, max(1, frames))


_FORMATS = (
    (b"\xff\xd8\xff", "JPEG", _jpeg),
    (b"\x89PNG\r\n\x1a\n", "PNG", _png),
    (b"GIF8", "GIF", _gif),
    (b"BM", "BMP", _bmp),
    (b"RIFF", "WebP", _webp),
    (b"\xff\x0a", "JPEG XL", _jpeg_xl),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", _jpeg_xl),
)
