"""ONNX Runtime's dynamic int8 beside ours on the blocks of DINOv2 ViT-g and ConvNeXt-XXL, interleaved: speed and accuracy.

    python encoders.py [--rounds 3] [--views 1] [--type Q8_0] [--model model.gguf --image photo.jpg]

Every kind of block is made once, with random weights and one view's activations, and both runtimes compute it in full from the
same numbers: ours with weights of `--type` in a mapped file, theirs with per-channel int8 weights as `quantize_dynamic` makes
them. A tower is a block's time times its count; patch embedding, stem and the convolutions between stages are left out (under
3 %). With `--model` our real towers run as well, from the file.

The error is that of what a block adds to its input, relative to the same in f32 by ONNX Runtime. In the second round of errors
six channels of the input are 30 times as large as the others, as trained encoders have them.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

EPS, HEADS = 1e-6, 24
# Positions per view, width, blocks of a tower.
CASES = {"dinov2": (257, 1536, 40), "convnext-1": (128 * 128, 384, 3), "convnext-2": (64 * 64, 768, 4),
         "convnext-3": (32 * 32, 1536, 30), "convnext-4": (16 * 16, 3072, 3)}
OUTLIERS, TIMES = 6, 30.0


def weights(name, width, random):
    """A block's weights, `[out, in]` as in checkpoints; the depthwise kernel is `[49, channels]`."""
    def linear(which, out, inputs):
        return {f"{which}.weight": random.standard_normal((out, inputs)) / inputs**0.5, f"{which}.bias": random.standard_normal(out) / 10}

    def norm(which):
        return {f"{which}.weight": 1 + random.standard_normal(width) / 5, f"{which}.bias": random.standard_normal(width) / 10}

    if name == "dinov2":
        found = {**norm("norm1"), **linear("qkv", 3 * width, width), **linear("proj", width, width), **norm("norm2"),
                 **linear("w12", 8192, width), **linear("w3", width, 4096), "ls1": random.uniform(0.2, 1, width),
                 "ls2": random.uniform(0.2, 1, width)}
    else:
        found = {"kernel": random.standard_normal((49, width)) / 7, "kernel.bias": random.standard_normal(width) / 10, **norm("norm"),
                 **linear("fc1", 4 * width, width), **linear("fc2", width, 4 * width), "gamma": random.uniform(0.2, 1, width)}
    return {k: v.astype(np.float32) for k, v in found.items()}


def operations(name, views):
    """Multiplications and additions of a block in its matrices."""
    positions, width, _ = CASES[name]
    per_position = width * (3 * width + width + 8192) + 4096 * width if name == "dinov2" else 8 * width * width
    return 2.0 * views * positions * per_position


class Graph:
    """A block in ONNX, written down operation by operation."""

    def __init__(self, w):
        self.nodes, self.w, self.constants, self.n = [], w, {}, 0

    def op(self, kind, *inputs, outputs=1, **attributes):
        names = [f"{kind}{self.n}_{i}" for i in range(outputs)]
        self.n += 1
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def const(self, value, name=None):
        name = name or f"c{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def named(self, name):
        return self.const(self.w[name], name)

    def linear(self, x, name):
        return self.op("Add", self.op("MatMul", x, self.const(self.w[f"{name}.weight"].T, f"{name}.weight")), self.named(f"{name}.bias"))

    def norm(self, x, name):
        return self.op("LayerNormalization", x, self.named(f"{name}.weight"), self.named(f"{name}.bias"), axis=-1, epsilon=EPS)

    def shape(self, x, *dims):
        return self.op("Reshape", x, self.const(np.array(dims, np.int64)))


def dinov2(w, views, positions, width):
    g, head = Graph(w), width // HEADS
    q, k, v = g.op("Split", g.linear(g.norm("x", "norm1"), "qkv"), outputs=3, axis=-1, num_outputs=3)
    q, v = (g.op("Transpose", g.shape(x, views, positions, HEADS, head), perm=[0, 2, 1, 3]) for x in (q, v))
    k = g.op("Transpose", g.shape(k, views, positions, HEADS, head), perm=[0, 2, 3, 1])
    p = g.op("Softmax", g.op("Mul", g.op("MatMul", q, k), g.const(np.float32(head**-0.5))), axis=-1)
    mixed = g.shape(g.op("Transpose", g.op("MatMul", p, v), perm=[0, 2, 1, 3]), views, positions, width)
    x = g.op("Add", "x", g.op("Mul", g.linear(mixed, "proj"), g.named("ls1")))
    gate, up = g.op("Split", g.linear(g.norm(x, "norm2"), "w12"), outputs=2, axis=-1, num_outputs=2)
    hidden = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return g, g.op("Add", x, g.op("Mul", g.linear(hidden, "w3"), g.named("ls2")))


def convnext(w, views, positions, width):
    g, side = Graph(w), int(positions**0.5)
    kernel = g.const(w["kernel"].T.reshape(width, 1, 7, 7), "kernel")
    # Maps are kept channels first between blocks, as the convolution wants them; the graph's ends are channels last.
    mixed = g.op("Conv", "x", kernel, g.named("kernel.bias"), kernel_shape=[7, 7], pads=[3, 3, 3, 3], group=width)
    normed = g.norm(g.op("Transpose", mixed, perm=[0, 2, 3, 1]), "norm")
    hidden = g.op("Gelu", g.linear(normed, "fc1"))
    added = g.op("Mul", g.linear(hidden, "fc2"), g.named("gamma"))
    return g, g.op("Add", "x", g.op("Transpose", added, perm=[0, 3, 1, 2]))


def shape_of(name, views):
    positions, width, _ = CASES[name]
    side = int(positions**0.5)
    return [views, positions, width] if name == "dinov2" else [views, width, side, side]


def to_peer(name, x):
    """Activations `[views, positions, width]` as the graph takes them."""
    if name == "dinov2":
        return x
    views, positions, width = x.shape
    side = int(positions**0.5)
    return np.ascontiguousarray(x.reshape(views, side, side, width).transpose(0, 3, 1, 2))


def from_peer(name, y):
    return y if name == "dinov2" else y.transpose(0, 2, 3, 1).reshape(y.shape[0], -1, y.shape[1])


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def save(path, tensors):
    """Writes safetensors."""
    header, at = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            f.write(np.ascontiguousarray(value).tobytes())


class Block:
    def __init__(self, name, views, folder):
        self.name, self.views = name, views
        positions, width, self.count = CASES[name]
        random = np.random.default_rng(7)
        self.w = weights(name, width, random)
        self.x = random.standard_normal((views, positions, width)).astype(np.float32)
        graph, result = (dinov2 if name == "dinov2" else convnext)(self.w, views, positions, width)
        graph.nodes.append(helper.make_node("Identity", [result], ["y"]))
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape_of(name, views)) for n in ("x", "y")]
        made = helper.make_graph(graph.nodes, name, ends[:1], ends[1:], list(graph.constants.values()))
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 10
        self.f32, self.int8 = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
        onnx.save(model, self.f32)
        quantize_dynamic(self.f32, self.int8, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
        self.case = folder / f"{name}.safetensors"
        save(self.case, {"x": self.x, **self.w})

    def ours(self, args, ty, calls, case=None):
        """Seconds, and what the block answers."""
        out = self.case.with_suffix(".out")
        env = {**os.environ, "SPHINX_THREADS": str(args.threads)}
        run = subprocess.run([args.block, case or self.case, ty, str(calls), out], capture_output=True, text=True, env=env, check=True)
        return float(run.stdout), np.fromfile(out, np.float32).reshape(self.x.shape)

    def peer(self, session, calls):
        x = {"x": to_peer(self.name, self.x)}
        session.run(None, x)
        took = []
        for _ in range(calls):
            start = time.perf_counter()
            session.run(None, x)
            took.append(time.perf_counter() - start)
        return common.median(took)

    def errors(self, args):
        """Relative errors of what the block adds, by kind of input: ours in the types asked for, theirs."""
        sessions = session(self.f32, args.threads), session(self.int8, args.threads)
        found = []
        for outliers in (False, True):
            x = self.x.copy()
            if outliers:
                x[:, :, np.random.default_rng(3).choice(x.shape[2], OUTLIERS, replace=False)] *= TIMES
            want, theirs = (from_peer(self.name, s.run(None, {"x": to_peer(self.name, x)})[0]) - x for s in sessions)
            case = self.case.with_suffix(".planted")
            save(case, {"x": x, **self.w})
            error = lambda got: 100 * float(np.sqrt(np.mean((got - want) ** 2, dtype=np.float64) / np.mean(want**2, dtype=np.float64)))
            ours = {ty: error(self.ours(args, ty, 1, case)[1] - x) for ty in ["F32", args.type]}
            found.append((outliers, ours, error(theirs)))
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.options(parser)
    parser.add_argument("--block", help="the bench of one block, when it need not be built")
    parser.add_argument("--views", type=int, default=1, help="views in one batch, for both")
    parser.add_argument("--type", default="Q8_0", help="our weights")
    parser.add_argument("--calls", type=int, default=5, help="calls of a block in a round")
    parser.add_argument("--only", default=",".join(CASES), help="blocks, with commas")
    parser.add_argument("--what", default="speed,errors")
    parser.add_argument("--model", help="a model whose real towers are timed, too")
    parser.add_argument("--image", help="a picture for it")
    args = parser.parse_args()
    args.limits = args.limits or common.bench_binary("limits")
    args.block = args.block or common.bench_binary("block")
    rounds = common.Rounds(args.keep)
    with tempfile.TemporaryDirectory() as folder:
        blocks = [Block(name, args.views, Path(folder)) for name in args.only.split(",")]
        if "speed" in args.what:
            sessions = {b.name: session(b.int8, args.threads) for b in blocks}
            steady = common.Steady(lambda: common.int8(args.limits, args.threads))
            for _ in range(args.rounds):
                one = {}
                for b in blocks:
                    both = lambda: (b.ours(args, args.type, args.calls)[0], b.peer(sessions[b.name], args.calls))
                    one[f"{b.name}-limit"], (one[f"{b.name}-ours"], one[f"{b.name}-peer"]) = steady.measure(both)
                    common.pause()
                if args.model:
                    one |= towers(args, steady)
                rounds.add(one)
        errors = {b.name: b.errors(args) for b in blocks} if "errors" in args.what else {}
    report(args, rounds, errors)


def towers(args, steady):
    """Seconds per view of our real towers."""
    vision = Path(args.model).with_name("mmproj-" + Path(args.model).name)
    common.touch(args.model, *([vision] if vision.exists() else []))
    work = lambda: common.bench(args.sphinx, args.model, "--image", args.image, "--prompt-tokens", 1, "--gen-tokens", 1, threads=args.threads)
    limit, found = steady.measure(work)
    image = found["image"]
    views = image["views"] - image["skipped_views"]
    return {"towers-limit": limit, "dinov2-tower": image["dinov2_s"] / views, "convnext-tower": image["convnext_s"] / views}


def report(args, rounds, errors):
    if rounds.all:
        print(f"{args.threads} threads, {args.views} view(s), {args.type}, onnxruntime {onnxruntime.__version__}, medians of {len(rounds.all)} rounds")
        print("| | blocks | ours, ms | ORT dynamic int8, ms | ratio | our share of the int8 limit | its share |\n|---|---:|---:|---:|---:|---:|---:|")
        for name, (_, _, count) in CASES.items():
            if not rounds.of(f"{name}-ours"):
                continue
            ms = lambda who: 1e3 * rounds.median(f"{name}-{who}")
            share = lambda who: common.median([100 * operations(name, args.views) / (r[f"{name}-{who}"] * r[f"{name}-limit"])
                                               for r in rounds.all if f"{name}-{who}" in r])
            print(f"| {name} | {count} | {ms('ours'):.2f} | {ms('peer'):.2f} | {rounds.ratio(name + '-peer', name + '-ours'):.2f} | "
                  f"{share('ours'):.1f} % | {share('peer'):.1f} % |")
        for tower in ("dinov2", "convnext"):
            parts = [n for n in CASES if n.startswith(tower)]
            if not all(rounds.of(f"{n}-ours") for n in parts):
                continue
            total = lambda r, who: sum(CASES[n][2] * r[f"{n}-{who}"] for n in parts) / args.views
            ours, peer = ([total(r, who) for r in rounds.all] for who in ("ours", "peer"))
            work = sum(CASES[n][2] * operations(n, 1) for n in parts)
            limit = common.median([r[f"{parts[0]}-limit"] for r in rounds.all])
            print(f"{tower}, all blocks, per view: ours {common.median(ours):.3f} s ({100 * work / limit / common.median(ours):.1f} % of the limit), "
                  f"ORT {common.median(peer):.3f} s, ratio {common.median([p / o for p, o in zip(peer, ours)]):.2f}")
            if rounds.of(f"{tower}-tower"):
                real, limit = rounds.median(f"{tower}-tower"), rounds.median("towers-limit")
                print(f"{tower}, our real tower, per view: {real:.3f} s ({100 * work / limit / real:.1f} % of the limit), "
                      f"ratio {common.median([p / r[f'{tower}-tower'] for p, r in zip(peer, rounds.all)]):.2f}")
    if errors:
        print(f"\n| error of what a block adds, % | ours, F32 weights | ours, {args.type} | ORT dynamic int8 |\n|---|---:|---:|---:|")
        for name, found in errors.items():
            for outliers, ours, theirs in found:
                what = f", {OUTLIERS} channels × {TIMES:.0f}" if outliers else ""
                print(f"| {name}{what} | {ours['F32']:.4f} | {ours[args.type]:.3f} | {theirs:.3f} |")


if __name__ == "__main__":
    main()
