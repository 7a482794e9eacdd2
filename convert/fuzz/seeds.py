"""Writes the small files that fuzzing starts from: python3 seeds.py corpus"""

import struct
import sys
import zipfile
from pathlib import Path

out = Path(sys.argv[1])


def write(target, name, data):
    (out / target).mkdir(parents=True, exist_ok=True)
    (out / target / name).write_bytes(data)


# Pickles about storage 0 of 64 bytes, as the target's archive holds it.


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def integer(n):
    return b"K" + bytes([n]) if 0 <= n < 256 else b"\x8a\x08" + struct.pack("<q", n)


def tuple_(*items):
    return b"(" + b"".join(items) + b"t"


def storage(kind, elements):
    return tuple_(text("storage"), b"ctorch\n" + kind + b"\n", text("0"), text("cpu"), integer(elements)) + b"Q"


def tensor(where, offset, shape, stride, call=b"_rebuild_tensor_v2", more=()):
    sizes = [tuple_(*map(integer, numbers)) for numbers in (shape, stride)]
    return b"ctorch._utils\n" + call + b"\n" + tuple_(where, integer(offset), *sizes, b"\x89", b"ccollections\nOrderedDict\n)R", *more) + b"R"


def state(*pairs):
    return b"}(" + b"".join(text(name) + value for name, value in pairs) + b"u"


f32 = tensor(storage(b"FloatStorage", 16), 0, [4, 4], [4, 1])
bf16 = tensor(storage(b"BFloat16Storage", 32), 3, [2, 2, 4], [8, 1, 2])
typed = tensor(b"(" + text("storage") + b"ctorch.storage\nUntypedStorage\n" + text("0") + text("cpu") + integer(64) + b"tQ",
               0, [8], [1], b"_rebuild_tensor_v3", (b"ctorch\nfloat16\n",))
parameter = b"ctorch._utils\n_rebuild_parameter\n(" + bf16 + b"\x88}tR"
write("pickle", "plain", b"\x80\x02" + state(("w", f32)) + b".")
write("pickle", "wrapped", b"\x80\x02" + state(("model", state(("a", f32), ("b.experts.0", bf16))), ("epoch", integer(3))) + b".")
write("pickle", "typed", b"\x80\x02" + state(("w", typed), ("p", parameter)) + b".")
write("pickle", "others", b"\x80\x02}q\x00(" + text("l") + b"](K\x01NeX\x01\0\0\0mh\x00X\x01\0\0\0tK\x01N\x86u.")
body = b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94(" + b"\x8c\x01w" + f32 + b"u}\x8c\x09_metadata}sb."
write("pickle", "framed", b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body)

# Archives around the first of them.
files = {"a/data.pkl": (out / "pickle/plain").read_bytes(), "a/byteorder": b"little", "a/data/0": bytes(range(64))}
path = out / "scratch.zip"
for name, wide in [("plain", False), ("wide", True)]:
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in files.items():
            with archive.open(zipfile.ZipInfo(entry), "w", force_zip64=wide) as f:
                f.write(data)
    write("pth_zip", name, path.read_bytes())


class Stream:
    """A file that cannot seek, so that zipfile writes data descriptors."""

    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += data
        return len(data)

    def flush(self):
        pass


stream = Stream()
with zipfile.ZipFile(stream, "w") as archive:
    for entry, data in files.items():
        archive.writestr(zipfile.ZipInfo(entry), data)
write("pth_zip", "described", stream.data)
path.unlink()

# A SentencePiece model: unknown, BOS, EOS, all bytes, a few pieces.


def field(number, data):
    assert len(data) < 1 << 14
    length = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
    return bytes([number << 3 | 2]) + length + data


def piece(name, score, kind):
    return field(1, field(1, name.encode()) + b"\x15" + struct.pack("<f", score) + (b"\x18" + bytes([kind]) if kind != 1 else b""))


pieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)
pieces += b"".join(piece(f"<0x{b:02X}>", 0, 6) for b in range(256))
pieces += b"".join(piece(p, -i, 1) for i, p in enumerate(["\u2581", "a", "b", "ab", "\u2581ab"]))
trainer = b"\x18\x02" + b"\x20" + bytes([0x88, 0x02]) + b"\x98\x02\x01"
normalizer = field(1, b"identity") + b"\x18\x01\x20\x00\x28\x01"
write("sentencepiece", "bpe", pieces + field(2, trainer) + field(3, normalizer))
