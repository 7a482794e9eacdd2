"""Writes the small files that fuzzing starts from: python3 seeds.py corpus/gguf_read"""

import struct
import sys
from pathlib import Path

out = Path(sys.argv[1])


def text(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def key(name, kind, payload):
    return text(name) + struct.pack("<I", kind) + payload


def array(kind, items):
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def tensor(name, dims, kind, offset):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(keys, tensors, data, align=32, version=3):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % align) + bytes(data)


arch = key("general.architecture", 8, text("llama"))
numbers = [(0, "<B", 1), (1, "<b", -1), (2, "<H", 1), (3, "<h", -1), (4, "<I", 1), (5, "<i", -1), (6, "<f", 0.5), (7, "<B", 1), (10, "<Q", 1), (11, "<q", -1), (12, "<d", 0.5)]
scalars = [key(f"s{k}", k, struct.pack(f, v)) for k, f, v in numbers]
arrays = [key(f"a{k}", 9, array(k, [struct.pack(f, v)] * 3)) for k, f, v in numbers] + [key("a8", 9, array(8, [text("a"), text(""), text("\u2581b")]))]
blocks = [(2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34), (10, 256, 84), (11, 256, 110), (12, 256, 144), (13, 256, 176), (14, 256, 210), (30, 1, 2)]
table, at = [], 0
for kind, cols, size in blocks:
    table.append(tensor(f"blk.0.t{kind}", [cols, 2], kind, at))
    at += -(-2 * size // 32) * 32

one = [tensor("t", [8], 0, 0)]
aligned = key("general.alignment", 4, struct.pack("<I", 64))
digest = key("sphinx.checksum.header", 10, bytes(8))
sums = key("sphinx.checksum.tensors", 9, array(10, [bytes(8)]))
out.mkdir(parents=True, exist_ok=True)
for name, data in {
    "one": file([arch], one, 32),
    "scalars": file([arch] + scalars, one, 32),
    "arrays": file([arch] + arrays, one, 32),
    "types": file([arch], table, at),
    "aligned": file([arch, aligned], [tensor("t", [2, 2, 2, 2], 1, 0), tensor("u", [3], 0, 64)], 76, 64),
    "nested": file([arch, key("n", 9, array(9, [array(0, [b"1"])]))], one, 32),
    "overlap": file([arch], [tensor("t", [8], 0, 0), tensor("u", [8], 0, 0)], 64),
    "digest": file([digest, arch, sums], one, 32),
    "version2": file([arch], one, 32, version=2),
    "short": file([arch], one, 31),
}.items():
    (out / name).write_bytes(data)
