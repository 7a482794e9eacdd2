#!/usr/bin/env python3
"""Does PyPI gguf read a file of ours whole? Run by hand.

    python tests/witnesses/gguf_reader.py FILE.gguf...
"""
import sys

import gguf

for path in sys.argv[1:]:
    reader = gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        field.contents()
    elements = 0
    for t in reader.tensors:
        block, size = gguf.GGML_QUANT_SIZES[t.tensor_type]
        n = 1
        for d in t.shape:
            n *= int(d)
        assert t.n_bytes == n // block * size == t.data.nbytes, t.name
        values = gguf.quants.dequantize(t.data, t.tensor_type)
        assert values.size == n, t.name
        elements += n
    print(f"{path}: {len(reader.fields)} keys, {len(reader.tensors)} tensors, {elements} elements")
