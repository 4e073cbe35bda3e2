"""PNG and MP4 files as far as a client needs to know them: whether they are complete, and the recipe inside.

PNG: W3C Portable Network Graphics (Third Edition), chunks in clause 5. MP4: ISO/IEC 14496-12, boxes in clause 4; the
comment is where QuickTime puts it, in moov/udta/meta/ilst/©cmt/data.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudvid.endpoints.errors import BrokenAnswer, OutputError
from cloudvid_schema import strict_json
from cloudvid_schema.protocol import MP4, PNG, RECIPE_KEY

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIECE = 2**20
"""Most bytes that are unpacked at once: a file can hold a thousand times its own size."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types


class _Broken(ValueError):
    """The file is not whole; the message says how."""


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(_PNG_SIGNATURE):
        raise _Broken("no PNG signature")
    at, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise _Broken(f"cut at byte {len(data)}")
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if data[at + 8 + length : at + 12 + length] != struct.pack(">I", zlib.crc32(kind + body)):
            raise _Broken(f"damaged at byte {at}")
        yield kind, body
        at += 12 + length
    if at != len(data):
        raise _Broken(f"{len(data) - at} bytes after its end")


def _check_png(data: bytes) -> None:
    """Every chunk's checksum, and that the pixels unpack to as many bytes as the header says."""
    unpacker, unpacked, expected = zlib.decompressobj(), 0, None
    for kind, body in _chunks(data):
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            row = (width * depth * _CHANNELS.get(colour, 0) + 7) // 8
            expected = None if interlaced else height * (row + 1)
        elif kind == b"IDAT":
            packed = body
            while packed:
                unpacked += len(unpacker.decompress(packed, _PIECE))
                if expected is not None and unpacked > expected:
                    raise _Broken(f"its pixels unpack to more than {expected} bytes")
                packed = unpacker.unconsumed_tail
    unpacked += len(unpacker.flush())
    if expected is not None and unpacked != expected:
        raise _Broken(f"its pixels unpack to {unpacked} bytes, not {expected}")
    if not unpacker.eof:
        raise _Broken("its pixels lack their checksum")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each box's contents."""
    while start < end:
        if start + 8 > end:
            raise _Broken(f"cut at byte {len(data)}")
        size, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        if size < head or start + size > end:
            raise _Broken(f"box {name.decode('latin-1')!a} at byte {start} does not fit")
        yield name, start + head, start + size
        start += size


def _check_mp4(data: bytes) -> None:
    if missing := {b"ftyp", b"moov", b"mdat"} - {name for name, _, _ in _boxes(data, 0, len(data))}:
        raise _Broken(f"no box {sorted(missing)[0].decode()}")


def check_whole(data: bytes, media_type: str) -> None:
    """Return where the file is whole.

    Raises:
        BrokenAnswer: it is cut or damaged, or is of another type.
    """
    check = {PNG: _check_png, MP4: _check_mp4}[media_type]
    try:
        check(data)
    except (_Broken, struct.error, zlib.error) as error:
        raise BrokenAnswer(f"the file is not whole ({media_type}): {error}") from None


def _png_text(data: bytes) -> bytes | None:
    for kind, body in _chunks(data):
        key, _, rest = body.partition(b"\0")
        if kind == b"iTXt" and key == RECIPE_KEY.encode() and len(rest) >= 2:
            text = rest[2:].split(b"\0", 2)[-1]  # after the language tag and the translated keyword
            return _unpacked(text) if rest[0] else text
    return None


def _unpacked(text: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(text, _PIECE)
    if not unpacker.eof:
        raise _Broken(f"its packed recipe is cut, or has more than {_PIECE} bytes")
    return unpacked


def _mp4_text(data: bytes) -> bytes | None:
    start, end = 0, len(data)
    for wanted in (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data"):
        found = [(first, last) for name, first, last in _boxes(data, start, end) if name == wanted]
        if not found:
            return None
        start, end = found[0]
        start += {b"meta": 4, b"data": 8}.get(wanted, 0)  # version and flags; type and locale
    return data[start:end]


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe inside a PNG or MP4 file, or None where it has none.

    Raises:
        OutputError: the file cannot be read, or is not whole.
    """
    try:
        data = path.read_bytes()
        if not data.startswith(_PNG_SIGNATURE) and data[4:8] != b"ftyp":
            raise OutputError(f"{path} is neither a PNG nor an MP4 file")
        text = _png_text(data) if data.startswith(_PNG_SIGNATURE) else _mp4_text(data)
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from None
    except (_Broken, struct.error, zlib.error) as error:
        raise OutputError(f"{path} is no whole PNG or MP4 file: {error}") from None
    try:
        recipe = strict_json.loads(text) if text else None
    except strict_json.JsonError:
        return None
    return recipe if isinstance(recipe, dict) and "stage" in recipe else None
