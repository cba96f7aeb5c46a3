"""PDFs with text of their own, written by hand, also locked ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def write_pdf(
    path: Path,
    *pages: Sequence[str],
    rotation: int = 0,
    size: tuple[int, int] = (300, 200),
    password: str | None = None,
) -> Path:
    """Pages of lines in Helvetica of 20 points, ``size`` points large.

    With ``password`` they are encrypted as in PDF 1.1 (standard security handler, revision 2: RC4
    with keys of 40 bits; ISO 32000-1, 7.6.3): the oldest kind, and the shortest to write.
    """
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    name = b"0123456789abcdef"
    key, encrypt = (b"", b"") if password is None else _lock(password.encode(), name)
    for n, lines in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] /Rotate {rotation} "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * n} 0 R >>".encode()
        )
        text = " ".join(
            f"BT /F1 20 Tf 30 {size[1] - 50 - 30 * k} Td ({line}) Tj ET"
            for k, line in enumerate(lines)
        ).encode()
        if key:
            text = _rc4(
                hashlib.md5(key + (5 + 2 * n).to_bytes(3, "little") + bytes(2)).digest()[:10], text
            )
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(text), text))
    if encrypt:
        objects.append(encrypt)
    out = b"%PDF-1.4\n"
    places = []
    for n, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (n, content)
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    more = f" /Encrypt {len(objects)} 0 R /ID [<{name.hex()}> <{name.hex()}>]" if encrypt else ""
    start = len(out)
    out += (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n"
        f"<< /Size {len(objects) + 1} /Root 1 0 R{more} >>\nstartxref\n{start}\n%%EOF"
    ).encode()
    path.write_bytes(out)
    return path


def _lock(password: bytes, name: bytes) -> tuple[bytes, bytes]:
    """The key of a document that ``password`` opens, and its encryption dictionary."""
    rights = -4
    padded = (password + _PAD)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    seed = padded + owner + rights.to_bytes(4, "little", signed=True) + name
    key = hashlib.md5(seed).digest()[:5]
    user = _rc4(key, _PAD)
    entry = f"<< /Filter /Standard /V 1 /R 2 /O <{owner.hex()}> /U <{user.hex()}> /P {rights} >>"
    return key, entry.encode()


def _rc4(key: bytes, content: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out = bytearray()
    i = j = 0
    for byte in content:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
