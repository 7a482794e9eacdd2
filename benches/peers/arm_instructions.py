"""Instructions per 16 multiply-accumulates in the innermost loops of aarch64 kernels, counted in a disassembly.

    aarch64-linux-gnu-objdump -d --no-show-raw-insn -C BINARY > dump.s
    python arm_instructions.py dump.s [dump.s …] [--only REGEX]

No clock is involved: a processor may run several instructions in a cycle, and some take longer than others. Of each function the loop
is taken that has most byte products among those without another such loop inside; `around` are the instructions of the loop around it that
are not its own, which run once while it runs a few times. `sdot` makes 16 products, `smmla` 32, `smull`,
`smlal` and their second halves 8.
"""

import argparse
import re

PRODUCTS = {"sdot": 16, "usdot": 16, "smmla": 32, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8}
HEAD = re.compile(r"^[0-9a-f]+ <(.*)>:$")
LINE = re.compile(r"^\s*([0-9a-f]+):\s+([a-z][a-z0-9.]*)\s*(.*)$")


def functions(path):
    name, lines = None, []
    for line in open(path, errors="replace"):
        if head := HEAD.match(line.rstrip()):
            if name:
                yield name, lines
            name, lines = head[1], []
        elif (found := LINE.match(line)) and name:
            lines.append((int(found[1], 16), found[2], found[3]))
    if name:
        yield name, lines


def products(op, arguments):
    """Byte products of an instruction; those of 16-bit numbers do not count."""
    return PRODUCTS.get(op, 0) if ".8h" in arguments and op.startswith(("smull", "smlal")) or op in ("sdot", "usdot", "smmla") else 0


def loops(lines):
    """Innermost loops with products: `(instructions, products, loads, calls, instructions around)`."""
    place = {address: i for i, (address, _, _) in enumerate(lines)}
    found = []
    for i, (address, op, arguments) in enumerate(lines):
        if not (op.startswith("b.") or op in ("b", "cbz", "cbnz", "tbz", "tbnz")):
            continue
        target = re.search(r"([0-9a-f]+) <", arguments)
        start = place.get(int(target[1], 16)) if target else None
        if start is not None and start <= i and any(products(o, a) for _, o, a in lines[start : i + 1]):
            found.append((start, i))
    inner = [(a, b) for a, b in found if not any((c, d) != (a, b) and a <= c and d <= b for c, d in found)]
    for a, b in inner:
        body = lines[a : b + 1]
        outer = [d - c + 1 for c, d in found if (c, d) != (a, b) and c <= a and b <= d]
        yield (len(body), sum(products(o, x) for _, o, x in body), sum(o.startswith("ld") for _, o, _ in body),
               sum(o == "bl" for _, o, _ in body), min(outer, default=len(body)) - len(body))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dumps", nargs="+")
    parser.add_argument("--only", default=".")
    args = parser.parse_args()
    print("| function | instructions in the loop | products | loads | calls | instructions per 16 products | around |\n|---|---:|---:|---:|---:|---:|---:|")
    for dump in args.dumps:
        for name, lines in functions(dump):
            if not re.search(args.only, name):
                continue
            best = max(loops(lines), key=lambda loop: loop[1], default=None)
            if best:
                count, made, loads, calls, around = best
                print(f"| {name} | {count} | {made} | {loads} | {calls} | {16 * count / made:.2f} | {around} |")


if __name__ == "__main__":
    main()
