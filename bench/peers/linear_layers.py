#!/usr/bin/env python3
"""Linear layers alone, Russet beside OpenVINO: a chain of products at 1, 8 and 512 tokens, alternating, a table for BENCHMARKS.md.

    pip install openvino numpy
    cargo build --release -p russet-kernels --example palette_bandwidth && python3 bench/peers/linear_layers.py [--rounds 3]

OpenVINO holds the weights as u4 in groups of 128 (4.13 bits) and rounds activations to 8 bits in groups of 128 while it runs
(dynamic quantization), Russet as 4-bit indices into a table for 16 rows. Twenty products of 3072 x 8192 in turn with their
transposes; figures are medians over rounds of the best pass in each.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import openvino as ov
from openvino import opset13 as op

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WIDE, NARROW, GROUP, PRODUCTS = 8192, 3072, 128, 20
TOKENS = [1, 8, 512]
KEPT = []  # what the model's constants point to


def chain():
    numbers = np.random.default_rng(0)
    x = y = op.parameter([-1, NARROW], np.float32)
    for product in range(PRODUCTS):
        inputs, outputs = (NARROW, WIDE) if product % 2 == 0 else (WIDE, NARROW)
        groups = inputs // GROUP
        packed = numbers.integers(0, 255, outputs * inputs // 2, dtype=np.uint8)
        zeros = np.full(outputs * groups // 2, 0x88, np.uint8)
        KEPT.extend([packed, zeros])
        u4 = lambda data, *shape: op.convert(op.constant(ov.Tensor(data, ov.Shape(shape), ov.Type.u4)), np.float32)
        scales = (numbers.random((outputs, groups, 1)) * 0.01).astype(np.float16).astype(np.float32)
        weight = op.subtract(u4(packed, outputs, groups, GROUP), u4(zeros, outputs, groups, 1))
        weight = op.reshape(op.multiply(weight, op.constant(scales)), np.array([outputs, inputs]), False)
        y = op.matmul(y, weight, False, True)
    return ov.Model([y], [x])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    parser.add_argument("--example", default=os.path.join(target, "release/examples/palette_bandwidth"))
    args = parser.parse_args()
    core = ov.Core()
    requests = {}
    for hint in ["f32", "bf16"]:
        settings = {"INFERENCE_NUM_THREADS": "2", "INFERENCE_PRECISION_HINT": hint, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
        requests[f"OpenVINO {ov.__version__.split('-')[0]}, u4, {hint}"] = core.compile_model(chain(), "CPU", settings).create_infer_request()
    seconds = {}
    note = lambda engine, tokens, best: seconds.setdefault((engine, tokens), []).append(best)
    weights = NARROW * WIDE * PRODUCTS
    stored = {}
    for round in range(args.rounds):
        for engine, request in requests.items():
            stored[engine] = weights * (0.5 + 2.5 / GROUP)
            for tokens in TOKENS:
                x = np.random.default_rng(1).standard_normal((tokens, NARROW)).astype(np.float32) * 0.1
                request.infer([x])
                times = []
                for _ in range(2 if tokens > 100 else 8):
                    start = time.perf_counter()
                    request.infer([x])
                    times.append(time.perf_counter() - start)
                note(engine, tokens, min(times))
        done = subprocess.run([args.example, "chain", "3"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        for line in done.stdout.splitlines():
            run = json.loads(line)
            engine = f"Russet, {run['bits']} bits"
            stored[engine] = run["bytes"]
            assert run["weights"] == weights, "both sides multiply the same"
            note(engine, run["tokens"], run["best_s"])
        print(f"round {round + 1}", file=sys.stderr)
    print("| linear layers alone | 1 token, GB/s (tokens/s of 2.6 G weights) | 8 tokens, GOP/s | 512 tokens, GOP/s |")
    print("|---|---|---|---|")
    for engine in stored:
        one, eight, many = (statistics.median(seconds[engine, tokens]) for tokens in TOKENS)
        rate = lambda tokens, s: 2 * tokens * weights / s / 1e9
        print(f"| {engine} | {stored[engine] / one / 1e9:.1f} ({weights / 2.617e9 / one:.1f}) "
              f"| {rate(8, eight):.0f} | {rate(512, many):.0f} |")


main()
