"""The server among 200 kinds of uploads that are meant to end it: it stays up and small."""

import io
import random
import socket
import struct
import threading
import time
import zipfile
import zlib
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from serving import make_index, served  # noqa: E402

from benchmarks.speed.serve import memory_of  # noqa: E402

pytestmark = pytest.mark.slow

NUM_SLOW = 40  # clients that send a byte now and then, while all else happens
MOST_MEMORY = 2.5 * 2**30  # bytes, of the server and the processes that decode
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA")


def encode(kind, pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png_of(width, height, data, depth=8, colour=2):
    """A PNG whose head says what it likes."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bombs():
    """Small files of many pixels, frames, texts and scans."""
    for side in (3000, 8000, 20000, 65535, 2**31 - 1):
        yield png_of(side, side, bytes(10**6))
        yield struct.pack(
            "<2sIHHIIIIHHIIIIII", b"BM", 54, 0, 0, 54, 40, side, side, *([1, 24]), *([0] * 6)
        )
    yield encode("PNG", np.zeros((7900, 7900), np.uint8), compress_level=9)
    yield encode("JPEG", np.zeros((7900, 7900), np.uint8), quality=5)
    yield encode("JPEG", np.zeros((5000, 5000, 3), np.uint8), quality=5, progressive=True)
    yield encode("WEBP", np.zeros((8000, 8000, 3), np.uint8))
    frames = [Image.new("P", (2000, 2000), n) for n in range(100)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    yield file.getvalue()
    jpeg = encode("JPEG", np.zeros((2000, 2000, 3), np.uint8), progressive=True)
    scan = jpeg.rindex(b"\xff\xda")
    yield jpeg[:scan] + jpeg[scan:-2] * 3000 + b"\xff\xd9"  # scan upon scan
    text = zlib.compress(bytes(10**8), 9)
    png = encode("PNG", np.zeros((9, 9, 3), np.uint8))
    content = b"a\0\0" + text
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content
    yield png[:33] + chunk + struct.pack(">I", zlib.crc32(b"zTXt" + content)) + png[33:]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**8))
    yield file.getvalue()


def polyglots(photo):
    """Files that are two things, or something else than an image."""
    others = (
        b"<script>alert(1)</script>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='99999' height='99999'/>",
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><svg>&b;</svg>",
        b"%PDF-1.7\n1 0 obj",
        b"#!/bin/sh\nrm -rf /",
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        b"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 0,0 'https://example.com'",
        b"\x1f\x8b" + bytes(99),
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"\0\0\0\x18ftypheic" + bytes(999),
        b"\0\0\0\x18ftypavif" + bytes(999),
        bytes(10**6),
        b"\xff" * 10**6,
        b'{"image": "data:image/png;base64,AAAA"}',
        b"--x\r\nContent-Disposition: form-data; name=image; filename=../../a\r\n\r\nAAA\r\n--x--",
    )
    for other in others:
        yield other
        yield photo + other
        yield other + photo


def damaged():
    """Images of every format, cut short, with changed bytes, and with bytes in between."""
    rng = random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    for kind in FORMATS:
        data = encode(kind, pixels[:200, :200] if kind == "ICO" else pixels)
        for share in (0.01, 0.3, 0.9, 0.999):
            yield data[: int(len(data) * share)]
        for _ in range(8):
            changed = bytearray(data)
            for _ in range(rng.choice([1, 20, 500])):
                changed[rng.randrange(min(len(changed), rng.choice([64, len(data)])))] = (
                    rng.randrange(256)
                )
            yield bytes(changed)
        place = rng.randrange(len(data))
        yield data[:place] + rng.randbytes(1000) + data[place:]


def requests_as_bytes(host):
    """Requests that no client sends: wrong lengths, huge heads, no end."""
    start = f"POST /api/search HTTP/1.1\r\nHost: {host}\r\n".encode()
    yield start + b"Content-Length: 1000000\r\n\r\nabc"
    yield start + b"Content-Length: 3\r\n\r\nabcdef"
    yield start + b"Content-Length: -1\r\n\r\nabc"
    yield start + b"Content-Length: 99999999999999999999999\r\n\r\nabc"
    yield start + b"Content-Length: abc\r\n\r\nabc"
    yield start + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
    yield start + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc"
    yield start + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n"
    yield start + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc"
    yield start + b"X: " + b"a" * 10**6 + b"\r\n\r\n"
    yield start + b"".join(b"X%d: y\r\n" % n for n in range(10**5)) + b"\r\n"
    yield start + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    yield start + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    yield b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\n\r\n"
    yield f"GET /../../../../etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    yield f"GET /api/images/1/{'9' * 5000} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    yield f"GET /%00%ff?k=%00&text=%ff HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    yield f"TRACE / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)  # TLS
    yield b"\0" * 10**5
    yield b""


def send_raw(place, data):
    """Send bytes, close, and let the answer be."""
    with socket.create_connection(place, timeout=5) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)
        except OSError:
            pass  # cut by the server, as it may


def trickle(place, host, stop):
    """Send a head, or a body, a byte at a time."""
    texts = (
        f"GET / HTTP/1.1\r\nHost: {host}\r\nX: ",
        f"POST /api/search HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n\r\n",
    )
    text = random.choice(texts).encode() + b"a" * 1000
    try:
        with socket.create_connection(place, timeout=5) as connection:
            for number in range(len(text)):
                connection.sendall(text[number : number + 1])
                if stop.wait(0.2 if number > 120 else 0):
                    return
    except OSError:
        pass


def test_the_server_stays_up_and_small(tmp_path, toy_tree, capsys):
    photo = (toy_tree / "test" / "class_8" / "2.png").read_bytes()
    file = make_index(tmp_path, toy_tree)
    with served(file, "--max_upload=20") as (address, process):
        host = urlsplit(address).netloc
        place = host.split(":")[0], int(host.split(":")[1])

        def ask(data):
            return httpx.post(f"{address}/api/search?k=1", content=data, timeout=300)

        right = ask(photo).json()
        before, most, kinds, slowest = memory_of(process.pid), 0, 0, 0.0
        num_cut = 0
        stop = threading.Event()
        slow = [threading.Thread(target=trickle, args=(place, host, stop)) for _ in range(NUM_SLOW)]
        for thread in slow:
            thread.start()

        for data in (*bombs(), *polyglots(photo), *damaged(), bytes(21 * 10**6)):
            start = time.monotonic()
            try:
                answer = ask(data)
            except httpx.TransportError:  # cut after its time, on a machine that is busy
                num_cut += 1
            else:
                assert answer.status_code in (200, 400, 413), (answer.status_code, data[:60])
            slowest = max(slowest, time.monotonic() - start)
            most, kinds = max(most, memory_of(process.pid)), kinds + 1
        for data in requests_as_bytes(host):
            send_raw(place, data)
            most, kinds = max(most, memory_of(process.pid)), kinds + 1

        assert ask(photo).json() == right and process.poll() is None
        stop.set()
        for thread in slow:
            thread.join()
    with capsys.disabled():
        print(
            f"\n{kinds} kinds beside {NUM_SLOW} slow clients: the slowest answer after "
            f"{slowest:.1f} s, {num_cut} cut, memory {before / 2**30:.2f} GiB before, "
            f"{most / 2**30:.2f} at most"
        )
    assert kinds >= 200 and num_cut < 10 and most < MOST_MEMORY
