#!/usr/bin/env python3
"""Curves of training runs as one SVG, from their logs.

    bench/curves.py --field validation_bits_per_byte --out docs/figures/optimizers.svg \\
        "AdamW 0.004=runs/a/03-pretrain.log/log.jsonl" "AdaStar 0.003=runs/b/03-pretrain.log/log.jsonl"

The horizontal axis is tokens in millions, the vertical one the field; a line a run, with its last value. Where runs are called
LABEL@RATE, there is a line a label, of the last values of its runs over their learning rates. Only the standard library is needed.
"""
import argparse
import html
import json
import math
import sys

COLOURS = ["#1b6ca8", "#c1440e", "#2e7d32", "#7b3fa0", "#b8860b", "#444444", "#d81b60", "#00838f"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 56, 210, 16, 44


def points(path, field, tokens_per_step):
    """(tokens, value) of each row that has the field; tokens are counted from the sources' counts where a row has none."""
    found, tokens_by_step = [], {0: 0.0}
    for line in open(path, encoding="utf-8"):
        row = json.loads(line)
        counts = [value for name, value in row.items() if name.startswith("tokens_") and name != "tokens_per_second"]
        if counts:
            tokens_by_step[row["step"]] = sum(counts)
        if isinstance(row.get(field), str):
            print(f"{path}: `{field}` of step {row['step']} is {row[field]}; left out", file=sys.stderr)
        elif field in row:
            found.append((row["step"], row[field]))
    if not found:
        sys.exit(f"{path} has no `{field}`")
    last = max(tokens_by_step)
    per_step = tokens_per_step or tokens_by_step[last] / last
    return [(tokens_by_step.get(step, step * per_step) / 1e6, value) for step, value in found]


def ticks(low, high, count=6):
    span = (high - low) / count
    magnitude = 10 ** len(str(int(span))) if span >= 1 else 1.0
    while magnitude > span:
        magnitude /= 10
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= span)
    first = int(low / step) * step
    return [first + step * i for i in range(count + 3) if low <= first + step * i <= high]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", nargs="+", metavar="LABEL=LOG")
parser.add_argument("--field", default="validation_bits_per_byte")
parser.add_argument("--title", default=None, help="what the vertical axis is, if not the field's name")
parser.add_argument("--tokens-per-step", type=float, default=None)
parser.add_argument("--out", required=True)
args = parser.parse_args()

curves, rates = [], set()
for run in args.runs:
    label, _, path = run.partition("=")
    curve = points(path, args.field, args.tokens_per_step)
    label, _, rate = label.partition("@")
    if not rate:
        curves.append((label, curve))
        continue
    rates.add(float(rate))
    if label not in (name for name, _ in curves):
        curves.append((label, []))
    next(line for name, line in curves if name == label).append((math.log2(float(rate)), curve[-1][1]))
for _, curve in curves:
    curve.sort()
xs = [x for _, curve in curves for x, _ in curve]
ys = [y for _, curve in curves for _, y in curve]
low_x, high_x = (min(xs) - 0.2, max(xs) + 0.2) if rates else (0.0, max(xs) * 1.02)
margin = 0.05 * (max(ys) - min(ys)) or 0.1
low_y, high_y = min(ys) - margin, max(ys) + margin
to_x = lambda x: LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
to_y = lambda y: HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)
text = lambda x, y, what, anchor="start", colour="#444", more="": (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>{html.escape(what)}</text>')

svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
       f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
marks = {math.log2(rate): f"{rate:g}" for rate in rates} or {x: f"{x:g}" for x in ticks(low_x, high_x)}
for x, mark in marks.items():
    svg.append(f'<line x1="{to_x(x):.1f}" x2="{to_x(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>')
    svg.append(text(to_x(x), HEIGHT - BOTTOM + 16, mark, "middle"))
for y in ticks(low_y, high_y):
    svg.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}" stroke="#eee"/>')
    svg.append(text(LEFT - 6, to_y(y) + 4, f"{y:.4g}", "end"))
svg.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "peak learning rate" if rates else "million tokens", "middle"))
middle = (TOP + HEIGHT - BOTTOM) / 2
svg.append(text(14, middle, args.title or args.field, "middle", more=f' transform="rotate(-90 14 {middle:.1f})"'))
order = sorted(range(len(curves)), key=lambda i: curves[i][1][-1][1], reverse=True)
names_y, free = {}, TOP
for i in order:
    names_y[i] = max(to_y(curves[i][1][-1][1]) + 4, free + 12)
    free = names_y[i]
for i, (label, curve) in enumerate(curves):
    colour = COLOURS[i % len(COLOURS)]
    line = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in curve)
    svg.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    svg += [f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in curve if len(curve) < 40]
    svg.append(text(to_x(curve[-1][0]) + 8, names_y[i], f"{label}: {curve[-1][1]:.3f}", colour=colour))
svg.append("</svg>\n")
with open(args.out, "w", encoding="utf-8") as file:
    file.write("\n".join(svg))
