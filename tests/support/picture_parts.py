"""The parts of picture files, put together byte by byte: what a writer of pictures would never write."""

import io
import os
import random
import struct
import zipfile
import zlib
from functools import partial

from PIL import Image

MIB = 2**20
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def noise(width=96, height=64, mode="RGB"):
    """A picture that does not compress, so that each part of its file is pixels."""
    size = width * height * len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), random.Random(0).randbytes(size))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# PNG


def chunk(kind, data=b"", crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def ihdr(width=64, height=64, depth=8, colour=0, filtering=0, interlace=0):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, filtering, interlace))


def rows(width=64, height=64, value=b"\0", width_bytes=None):
    return zlib.compress((b"\0" + value * (width_bytes or width)) * height)


def png(*before, header=None, pixels=None, after=b""):
    """A grey PNG of 64×64, with chunks before and after its pixels."""
    image = chunk(b"IDAT", rows() if pixels is None else pixels)
    return PNG_MAGIC + (header or ihdr()) + b"".join(before) + image + after + chunk(b"IEND")


def padded_picture(size):
    """A PNG picture of 64×64 pixels in a file of so many bytes, the rest of them in a chunk that decoders pass over."""
    picture = encoded(Image.radial_gradient("L").resize((64, 64)).convert("RGB"))
    if (left := size - len(picture) - 12) <= 0:
        return picture
    header = len(PNG_MAGIC) + len(ihdr())
    return picture[:header] + chunk(b"pdNg", os.urandom(left)) + picture[header:]


def text_bomb(kind, head, size=20 * MIB):
    return chunk(kind, head + zlib.compress(b"a" * size))


def wide_text(count):
    """Compressed texts of a million characters each; one of them is wide, so that Python keeps four bytes for each."""
    text = zlib.compress("😀".encode() + b"a" * (MIB - 10))
    return b"".join(chunk(b"iTXt", b"k%d\0\1\0\0\0" % number + text) for number in range(count))


def animation_control(frames):
    return chunk(b"acTL", struct.pack(">II", frames, 0))


def frame_control(sequence, width=64, height=64):
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", sequence, width, height, 0, 0, 1, 10, 0, 0))


# JPEG


def segment(marker, data=b""):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(**options):
    return encoded(noise(), "JPEG", **options)


def with_segments(segments):
    """A JPEG that begins with these segments."""
    data = jpeg()
    return data[:2] + segments + data[2:]


def changed_segment(marker, change):
    """A JPEG whose first segment of this marker has another content."""
    data = jpeg()
    start = data.index(bytes([0xFF, marker])) + 4
    end = start - 2 + int.from_bytes(data[start - 2 : start], "big")
    return data[:start] + change(data[start:end]) + data[end:]


def frame(width, height, marker=0xC0, depth=8, components=1):
    return segment(
        marker,
        struct.pack(">BHHB", depth, height, width, components)
        + b"".join(bytes([number + 1, 0x11, 0]) for number in range(components)),
    )


def scans(count, side):
    """A progressive JPEG with scans of some 30 bytes, each of which passes over all of its pixels and changes none."""
    blocks = (-(-side // 8)) ** 2
    bits = ""
    while blocks > 0:
        run = min(blocks, 32767)
        bits += "0" + format(max(run - 16384, 0), "014b")  # code of "2**14 empty blocks and more", then how many more
        blocks -= run
    bits += "1" * (-len(bits) % 8)
    run_of_empty = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    one_code = bytes([1]) + bytes(15)
    return (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + b"\1" * 64)
        + frame(side, side, 0xC2)
        + segment(0xC4, b"\x00" + one_code + b"\x00")
        + segment(0xC4, b"\x10" + one_code + b"\xe0")
        + segment(0xDA, b"\1\1\0\0\0\0")
        + bytes((-(-side // 8)) ** 2 // 8)
        + (segment(0xDA, b"\1\1\0\1\x3f\0") + run_of_empty) * count
        + b"\xff\xd9"
    )


def between_scans(segments):
    """A progressive JPEG with these segments behind its first scan."""
    data = jpeg(progressive=True)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    return data[:second] + segments + data[second:]


# EXIF


def exif(*tags, count=None, head=b"MM\0*\0\0\0\x08", tail=bytes(4)):
    entries = b"".join(struct.pack(">HHII", *tag) for tag in tags)
    return b"Exif\0\0" + head + struct.pack(">H", len(tags) if count is None else count) + entries + tail


ORIENTATION = (0x0112, 3, 1, 6 << 16)  # turned by a quarter, so that Pillow rewrites the EXIF data


# WebP


def webp(*chunks, width=64, height=64, flags=0):
    """An extended WebP: a header and these chunks."""
    header = bytes([flags, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in ((b"VP8X", header), *chunks)
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def plain_webp(lossless=False):
    return encoded(noise(64, 64), "WEBP", lossless=lossless)


# What hides behind a picture, or poses as one


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("run.sh", "#!/bin/sh\necho harm\n")
    return buffer.getvalue()


HTML = b"<!DOCTYPE html><html><body><script>alert(1)</script></body></html>"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>'
MP4 = struct.pack(">I", 24) + b"ftypisom\0\0\2\0isommp41" + struct.pack(">I", 8) + b"mdat"
FORMATS = {
    "PNG": partial(encoded, noise(), "PNG"),
    "JPEG": jpeg,
    "progressive JPEG": partial(jpeg, progressive=True),
    "WebP": partial(encoded, noise(), "WEBP"),
    "lossless WebP": partial(encoded, noise(), "WEBP", lossless=True),
}
MAGIC = {"PNG": PNG_MAGIC, "JPEG": b"\xff\xd8\xff", "WebP": b"RIFF\0\1\0\0WEBPVP8 "}
