"""Picture files that are made to do harm, or that are no pictures, and what it costs to open them.

`PYTHONPATH=handlers:tests MALLOC_MMAP_THRESHOLD_=65536 python -m support.hostile_pictures` prints what each costs, a
line of JSON a picture. (The variable makes glibc return what is freed: memory that a process kept counts as no growth.)
"""

import json
import os
import random
import resource
import struct
import time
import zlib

from PIL import Image

from cloudvid_schema.protocol import RequestError
from cloudvid_stages.pictures import open_picture
from support.picture_parts import (
    FORMATS,
    HTML,
    MAGIC,
    MIB,
    MP4,
    ORIENTATION,
    PDF,
    PNG_MAGIC,
    SVG,
    animation_control,
    between_scans,
    changed_segment,
    chunk,
    encoded,
    exif,
    frame,
    frame_control,
    ihdr,
    jpeg,
    noise,
    plain_webp,
    png,
    rows,
    scans,
    segment,
    text_bomb,
    webp,
    wide_text,
    with_segments,
    zipped,
)


def bombs():
    """Small files, or many small parts, that would become large."""
    yield "PNG of 100000×100000", png(header=ihdr(100_000, 100_000))
    yield "PNG of 2³¹-1 squared", png(header=ihdr(2**31 - 1, 2**31 - 1))
    yield "PNG of 2³²-1 squared", png(header=ihdr(2**32 - 1, 2**32 - 1))
    yield "PNG a pixel over the most pixels", png(header=ihdr(4097, 4096))
    yield "PNG of 1×65536", png(header=ihdr(1, 65536), pixels=rows(1, 65536))
    yield "PNG of 65536×1", png(header=ihdr(65536, 1), pixels=rows(65536, 1))
    yield "PNG of 1×16777216", png(header=ihdr(1, 2**24), pixels=rows(1, 2**24))
    yield "PNG of 16777216×1 in bits", png(header=ihdr(2**24, 1, depth=1), pixels=rows(2**21, 1))
    yield "PNG with a zTXt of 20 MiB", png(text_bomb(b"zTXt", b"k\0\0"))
    yield "PNG with an iTXt of 20 MiB", png(text_bomb(b"iTXt", b"k\0\1\0\0\0"))
    yield "PNG with an iCCP of 20 MiB", png(text_bomb(b"iCCP", b"k\0\0"))
    yield "PNG with a zTXt of 20 MiB after the pixels", png(after=text_bomb(b"zTXt", b"k\0\0"))
    yield "PNG with 60 wide iTXt of 1 MiB", png(wide_text(60))
    yield "PNG with 60 wide iTXt of 1 MiB after the pixels", png(after=wide_text(60))
    yield "PNG with 2000 iCCP of 1 MiB", png(text_bomb(b"iCCP", b"k\0\0", MIB - 1) * 2000)
    yield "PNG with 2000 nameless zTXt of 1 MiB", png(text_bomb(b"zTXt", b"\0\0", MIB - 1) * 2000)
    yield "PNG with 350000 empty chunks", png(chunk(b"abCd") * 350_000)
    yield "PNG with 350000 empty chunks after the pixels", png(after=chunk(b"abCd") * 350_000)
    yield "PNG with 350000 empty IDAT", png(chunk(b"IDAT") * 350_000)
    yield "PNG with 200000 keywords", png(b"".join(chunk(b"tEXt", b"%d\0" % number) for number in range(200_000)))
    yield "JPEG of 65535×65535", b"\xff\xd8" + frame(65535, 65535) + segment(0xDA, b"\1\1\0\0\x3f\0")
    yield "progressive JPEG of 65535×65535", b"\xff\xd8" + frame(65535, 65535, 0xC2) + segment(0xDA, b"\1\1\0\0\0\0")
    yield "JPEG with 1000000 empty segments", with_segments(segment(0xE4) * 1_000_000)
    yield "JPEG with 1000000 comments", with_segments(segment(0xFE) * 1_000_000)
    yield "JPEG with 4 MiB of fill bytes", with_segments(b"\xff" * (4 * MIB))
    yield "JPEG with 4 MiB between segments", with_segments(segment(0xE4) + bytes(4 * MIB))
    yield "JPEG with EXIF in 300000 pieces", with_segments(segment(0xE1, b"Exif\0\0a") * 300_000)
    yield "JPEG with EXIF in 10000 pieces", with_segments(segment(0xE1, b"Exif\0\0" + bytes(900)) * 10_000)
    yield "JPEG with 100000 frames", with_segments(frame(64, 64) * 100_000)
    yield "progressive JPEG with 5000 scans", scans(5000, 4096)
    yield "progressive JPEG with 100000 scans", scans(100_000, 64)
    yield "progressive JPEG with 101 scans", scans(100, 64)
    yield "JPEG with 1000000 segments between scans", between_scans(segment(0xE4) * 1_000_000)
    yield "JPEG with 1000 lone bytes between segments", with_segments(segment(0xE4) + bytes(1000))
    yield "JPEG with 300000 ends before its frame", with_segments(b"\xff\xd9" * 300_000)
    hidden = b"\xff\xf0\xff\xff" + segment(0xE4) * 16_383  # Pillow gives this marker no length
    yield "JPEG with 300000 segments in 20 of a reserved kind", with_segments(hidden * 20)
    yield "JPEG with 10 MiB of tables", with_segments(segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 160)
    yield "PNG with 10 MiB of private chunks", png(chunk(b"abCd", bytes(10 * MIB)))
    lossy = (b"VP8 ", plain_webp()[20:])
    yield "WebP of 16384×16384", webp(lossy, width=16384, height=16384)
    yield "WebP of 2²⁴×2²⁴", webp(lossy, width=2**24, height=2**24)
    yield "WebP with 100000 empty chunks", webp(*[(b"abcd", b"")] * 100_000, lossy)
    yield "JPEG with EXIF of 2 MB in 400 pieces", with_segments(segment(0xE1, b"Exif\0\0" + bytes(5000)) * 400)
    yield "WebP with EXIF of 4 MiB", webp(lossy, (b"EXIF", exif(ORIENTATION) + bytes(4 * MIB)), flags=8)
    yield "PNG with EXIF of 4 MiB", png(chunk(b"eXIf", exif(ORIENTATION)[6:] + bytes(4 * MIB)))
    yield "WebP with EXIF of 25 MiB", webp(lossy, (b"EXIF", exif(ORIENTATION) + bytes(25 * MIB)), flags=8)
    yield "WebP whose canvas is larger than its picture", webp(lossy, width=4000, height=4000)


def cut_off():
    """Files that end too early, at several places of each format."""
    for name, make in FORMATS.items():
        data = make()
        for part in (0.01, 0.1, 0.3, 0.6, 0.9, 0.99):
            yield f"{name} cut at {part:.0%}", data[: int(len(data) * part)]
    for name, magic in MAGIC.items():
        yield f"{name} with only its magic", magic
        yield f"half of {name}'s magic", magic[: len(magic) // 2]
        yield f"{name} of zeros", magic + bytes(5000)
        for seed in range(3):
            yield f"{name} of random bytes, {seed}", magic + random.Random(seed).randbytes(5000)


def moving():
    """Pictures of more than one frame."""
    two = {"save_all": True, "append_images": [noise().rotate(180)], "duration": 100}
    yield "APNG", encoded(noise(), "PNG", **two)
    yield "APNG with a default picture", encoded(noise(), "PNG", default_image=True, **two)
    yield "APNG that promises 2³¹ frames", png(animation_control(2**31), frame_control(0))
    yield "APNG whose frame is larger than it", png(animation_control(1), frame_control(0, 65, 65))
    yield "GIF of two frames", encoded(noise(), "GIF", **two)
    yield "WebP of two frames", encoded(noise(), "WEBP", **two)
    inner = bytes(6) + struct.pack("<I", 63)[:3] * 2 + b"\1\0\0\0" + plain_webp()[12:]
    yield "WebP of 200 frames", webp((b"ANIM", bytes(6)), *[(b"ANMF", inner)] * 200, flags=2)
    yield "WebP of no frame", webp((b"ANIM", bytes(6)), flags=2)
    yield "TIFF of two pages", encoded(noise(), "TIFF", save_all=True, append_images=[noise()])


def other_formats():
    """Files of formats that are not taken, some under another's name."""
    for kind in ("BMP", "GIF", "TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "AVIF", "DDS", "EPS", "PDF"):
        yield kind, encoded(noise(64, 64), kind)
    yield "PSD", b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 64, 64, 8, 3) + bytes(64 * 64 * 3 + 14)
    yield "SVG", SVG
    yield "SVG with an entity bomb", b'<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><svg>&b;</svg>'
    yield "HTML", HTML
    yield "PDF with a JPEG inside", PDF + b"stream\n" + jpeg() + b"\nendstream"
    yield "MP4", MP4
    yield "HEIC", struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100)
    yield "JPEG XL", b"\xff\x0a" + bytes(100)
    yield "MNG", b"\x8aMNG\r\n\x1a\n" + bytes(100)
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) (r) file\n"
    yield "ZIP with a PNG inside", zipped() + png()
    yield "AVI in a RIFF", b"RIFF" + struct.pack("<I", 1000) + b"AVI LIST" + bytes(1000)
    yield "PNG after HTML", HTML + png()
    yield "PNG after a line break", b"\n" + png()
    yield "PNG after GIF's magic", b"GIF89a" + png()
    yield "PNG in base64", b"iVBORw0KGgoAAAANSUhEUgAAAEAAAABA"
    yield "PNG after a text transfer", png().replace(b"\r\n", b"\n", 1)
    yield "JPEG after PDF's magic", b"%PDF-1.4\n" + jpeg()
    yield "JPEG after PNG's magic", PNG_MAGIC + jpeg()
    yield "PNG after JPEG's magic", b"\xff\xd8\xff" + png()
    yield "empty file", b""
    yield "a byte", b"\0"
    yield "a path", b"/etc/passwd"
    yield "an address", b"http://127.0.0.1:8081/models"


def broken():
    """Files with a part that contradicts the rest."""
    for width, height in ((0, 0), (0, 64), (64, 0)):
        yield f"PNG of {width}×{height}", png(header=ihdr(width, height))
        yield f"JPEG of {width}×{height}", b"\xff\xd8" + frame(width, height) + jpeg()[2:]
    yield "PNG without IHDR", PNG_MAGIC + chunk(b"IDAT", rows()) + chunk(b"IEND")
    yield "PNG without IDAT", PNG_MAGIC + ihdr() + chunk(b"IEND")
    yield "PNG with a short IHDR", png(header=chunk(b"IHDR", bytes(5)))
    yield "PNG with a bad CRC of IHDR", png(header=ihdr()[:-4] + bytes(4))
    yield "PNG with a bad CRC of its text", png(chunk(b"tEXt", b"k\0v", crc=0))
    yield "PNG of colour type 7", png(header=ihdr(colour=7))
    yield "PNG of depth 3", png(header=ihdr(depth=3))
    yield "PNG of filter method 9", png(header=ihdr(filtering=9))
    yield "PNG with a filter type of 200", png(pixels=zlib.compress((b"\xc8" + bytes(64)) * 64))
    yield "PNG whose pixels are no zlib", png(pixels=b"no zlib at all")
    yield "PNG with a bad checksum of its pixels", png(pixels=rows()[:-4] + b"bad!")
    yield "PNG with a row that ends midway", png(pixels=rows(height=1)[:-6] + b"\0\0")
    yield "PNG whose pixels lack an end", png(pixels=rows()[:-20])
    yield "PNG with a chunk longer than the file", PNG_MAGIC + ihdr() + struct.pack(">I", 2**31 - 1) + b"tEXtk\0v"
    yield "PNG with an unnamed chunk", png(chunk(b"\0\0\0\0"))
    yield "PNG with 16 bits announced and 8 sent", png(header=ihdr(depth=16, colour=2))
    yield "PNG with a cut tRNS", png(chunk(b"tRNS", b"\0"))
    yield "JPEG of 12 bits", b"\xff\xd8" + frame(64, 64, depth=12) + jpeg()[2:]
    yield "JPEG of 2 layers", b"\xff\xd8" + frame(64, 64, components=2) + segment(0xDA, b"\1\1\0\0\x3f\0")
    yield "JPEG of 200 layers", b"\xff\xd8" + frame(64, 64, components=200) + segment(0xDA, b"\1\1\0\0\x3f\0")
    yield "JPEG with two frames", with_segments(frame(9999, 1))
    yield "JPEG without a quantization table", jpeg().replace(b"\xff\xdb", b"\xff\xe5")
    yield "JPEG with a corrupt Huffman table", changed_segment(0xC4, lambda table: b"\0" + b"\xff" * (len(table) - 1))
    yield "JPEG with a Huffman table of no code", changed_segment(0xC4, lambda table: bytes(len(table)))
    yield "JPEG of a lossless kind", b"\xff\xd8" + frame(64, 64, 0xC3) + segment(0xDA, b"\1\1\0\0\x3f\0") + bytes(99)
    yield "JPEG of a hierarchical kind", b"\xff\xd8" + segment(0xDE, bytes(6)) + jpeg()[2:]
    yield "JPEG with a scan of a layer it lacks", changed_segment(0xDA, lambda scan: b"\3\7\0\x08\x11\x09\x11\0\x3f\0")
    yield "JPEG whose pixels never come", jpeg()[: jpeg().index(b"\xff\xda") + 14]
    yield "JPEG whose segment is longer than it", b"\xff\xd8\xff\xe0\xff\xff" + bytes(100)
    lossy = (b"VP8 ", plain_webp()[20:])
    yield "WebP with a VP8 frame of another size", webp(lossy, width=63, height=63)
    yield "WebP with a negative chunk", plain_webp()[:16] + b"\xff\xff\xff\xff" + plain_webp()[20:]
    yield "WebP with a corrupt lossless frame", webp((b"VP8L", plain_webp(lossless=True)[20:25] + b"\xff" * 5000))


def taken():
    """Files that look like one of the above and are harmless pictures, with why they are taken."""
    lossy = (b"VP8 ", plain_webp()[20:])
    # What stands behind the end is not read, and nothing of the file is passed on.
    for name, more in {"a ZIP": zipped(), "HTML": HTML, "an MP4": MP4}.items():
        yield f"PNG with {name} behind it", png() + more
        yield f"JPEG with {name} behind it", jpeg() + more
        yield f"WebP with {name} behind it", plain_webp() + more
    yield "JPEG with a film behind it", jpeg() + MP4 + random.Random(0).randbytes(MIB)  # as phones write them
    preview = {"save_all": True, "append_images": [noise(32, 32)]}
    yield "JPEG with a preview behind it", encoded(noise(), "MPO", **preview)  # as cameras do
    # No text is read but our own recipe, which is held against its rules.
    yield "PNG with a script as its text", png(chunk(b"tEXt", b"Comment\0" + HTML))
    yield "PNG with a script as its recipe", png(chunk(b"tEXt", b"cloudvid\0" + HTML))
    yield "PNG with a recipe nested 30000 deep", png(chunk(b"tEXt", b"cloudvid\0" + b"[" * 30_000))
    yield "JPEG with a PDF in its comment", with_segments(segment(0xFE, PDF))
    # Every pixel is there.
    yield "PNG without IEND", png()[:-12]
    yield "PNG with a bad CRC of IDAT", PNG_MAGIC + ihdr() + chunk(b"IDAT", rows(), crc=0) + chunk(b"IEND")
    yield "PNG with 40 MiB behind its pixels", png(pixels=zlib.compress(bytes(40 * MIB), 9))  # they are not inflated
    yield "PNG of 16 bits a colour", png(header=ihdr(depth=16, colour=2), pixels=rows(width_bytes=64 * 6))  # upper 8
    yield "PNG of 16 bits grey", encoded(Image.new("I;16", (64, 64)), "PNG")
    yield "JPEG in CMYK", encoded(noise(mode="CMYK"), "JPEG")
    yield "JPEG without a Huffman table", jpeg().replace(b"\xff\xc4", b"\xff\xe5")  # libjpeg has the standard's own
    yield "JPEG with 100 scans", scans(99, 64)
    # The decoder fills in black for what is missing, or any bits are pixels to it.
    yield "PNG with a row of 64 and then a zlib that ends", png(pixels=rows(height=1))
    short = chunk(b"PLTE", bytes(6))
    yield "PNG with a palette too short for its pixels", png(short, header=ihdr(colour=3), pixels=rows(value=b"\xc8"))
    yield "PNG without the palette that it needs", png(header=ihdr(colour=3))
    yield "WebP of zeros in its frame", webp((b"VP8 ", plain_webp()[20:30] + bytes(5000)))
    # Small or long, and within the limits: the clip has a size of its own.
    for kind in ("PNG", "JPEG", "WEBP"):
        yield f"{kind} of 1×1", encoded(noise(1, 1), kind)
    yield "PNG in 7 interlaced passes of 1×1", png(header=ihdr(1, 1, interlace=1), pixels=rows(1, 1))
    yield "PNG of 1×65535", png(header=ihdr(1, 65535), pixels=rows(1, 65535))
    yield "PNG of 65535×1", png(header=ihdr(65535, 1), pixels=rows(65535, 1))
    yield "JPEG of 1×65500", encoded(Image.new("L", (1, 65500)), "JPEG")
    # EXIF data is read only for the orientation, and no more of it than the file has.
    cyclic = exif(ORIENTATION, (0x8769, 4, 1, 8), (0x8825, 4, 1, 8), tail=struct.pack(">I", 8))
    yield "PNG whose EXIF is cyclic", png(chunk(b"eXIf", cyclic[6:]))
    yield "JPEG whose EXIF is cyclic", with_segments(segment(0xE1, cyclic))
    tags = exif(*[(1000 + number, 7, MIB // 2, 8) for number in range(20_000)])
    yield "PNG with 20000 EXIF tags of 512 KiB each", png(chunk(b"eXIf", tags[6:] + bytes(MIB // 2)))
    tags = exif(*[(1000 + number, 7, 60_000, 8) for number in range(5000)])
    yield "JPEG with 5000 EXIF tags of 60000 bytes each", with_segments(segment(0xE1, tags))
    yield "JPEG whose EXIF has 65535 tags and ends", with_segments(segment(0xE1, exif(count=65535)))
    yield "JPEG whose EXIF points behind its end", with_segments(segment(0xE1, exif((0x0112, 3, 2**31, 2**31))))
    yield "JPEG whose EXIF is no TIFF", with_segments(segment(0xE1, b"Exif\0\0" + b"nonsense" * 20))
    yield "JPEG of orientation 255", with_segments(segment(0xE1, exif((0x0112, 3, 1, 255 << 16))))
    for tag in (0x0112, 0x9999):  # the orientation itself, and one that is not needed
        for name, kind, size in (("SHORT", 3, 2), ("RATIONAL", 5, 8), ("DOUBLE", 12, 8)):
            values = exif(*[ORIENTATION] * (tag != 0x0112), (tag, kind, MIB // size - 16, 8)) + bytes(MIB - 128)
            yield f"PNG with 1 MiB of {name} in EXIF tag {tag}", png(chunk(b"eXIf", values[6:]))
            yield f"WebP with 1 MiB of {name} in EXIF tag {tag}", webp(lossy, (b"EXIF", values), flags=8)
    # Many parts, and not too many.
    yield "JPEG with 400 segments", with_segments(segment(0xE4) * 400)
    yield "JPEG with EXIF in 400 pieces", with_segments(segment(0xE1, b"Exif\0\0" + bytes(2500)) * 400)
    yield "PNG with 100 iCCP of 1 MiB", png(text_bomb(b"iCCP", b"k\0\0", MIB - 1) * 100)
    yield "PNG with 10000 empty IDAT", png(chunk(b"IDAT") * 10_000)
    yield "WebP with 500 chunks", webp(*[(b"abcd", b"")] * 499, lossy)


def refused():
    for group in (bombs, cut_off, moving, other_formats, broken):
        yield from group()


def cost(data):
    """What opening the file says, takes in seconds and takes in MiB: in a new process, so that nothing adds up."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            answer = "{}×{}".format(*open_picture(data).size)
        except RequestError as error:
            answer = str(error)
        seconds = time.perf_counter() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(writing, json.dumps({"answer": answer, "seconds": seconds, "mib": grown}).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"answer": "died", "seconds": 0.0, "mib": 0.0}


if __name__ == "__main__":
    for expected, pictures in (("refused", refused()), ("taken", taken())):
        for name, data in pictures:
            print(json.dumps({"name": name, "expected": expected, "bytes": len(data), **cost(data)}), flush=True)
