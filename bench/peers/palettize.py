#!/usr/bin/env python3
"""Palettizing beside coremltools and llama.cpp's IQ3_S: weights a second of one core, and the memory that it takes.

    cargo build --release && bench/peers/palettize.py speed [--shape 0.6b] [--layers 4] [--rounds 3] [--tokens 512] [--python PYTHON]
    bench/peers/palettize.py memory [--shape 3b] [--tokens 512] [--threads 2]

`speed`: a random dense checkpoint of some layers of that shape, one thread each, engines in turns that rotate with the round. coremltools
is its PostTrainingPalettizer, k-means by groups of 16 output channels that share a palette, with a scale a channel, 4 bits, on the seven
projections of one block, weights unweighted; PYTHON is one that has `coremltools` and `torch`. llama.cpp is llama-quantize of
`bench/peers/llama_cpp.py` on the same checkpoint as a GGUF of f16 (without an importance matrix; it can do IQ3_S without, and gets less to do). Ours is
`russet palettize --bits 2,3,4`, which fits each projection with three widths, decides which it gets and refines that by the error of
products. Only weights of projections are counted. Seconds are those of the processor, so that neighbours count little; those by the clock stand beside.

`memory`: the largest resident set of `russet palettize` on a checkpoint in bf16 with a vocabulary of 49,152, and what of it is not pages of
mapped files. The tokenizer is that of models/nano. Everything lies in $RUSSET_CACHE/peers.
"""
import argparse
import glob
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time

import numpy

from llama_cpp import CACHE, ROOT, SHAPES, run, tools

NANO = os.path.join(ROOT, "models/nano/checkpoint")
TICK = os.sysconf("SC_CLK_TCK")

# The engine by itself, in another Python: the weights of one block, seconds by the processor and by the clock.
COREML = """
import json, struct, sys, time, warnings, logging
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
import numpy, torch
from coremltools.optimize.torch.palettization import PostTrainingPalettizer, PostTrainingPalettizerConfig
torch.set_num_threads(1)
path, bits = sys.argv[1], int(sys.argv[2])
with open(path, "rb") as file:
    size, = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(size))
    layers, weights = [], 0
    for name, at in header.items():
        if name.startswith("model.layers.0.") and name.endswith("_proj.weight"):
            begin, end = at["data_offsets"]
            file.seek(8 + size + begin)
            raw = numpy.frombuffer(file.read(end - begin), numpy.uint16).astype(numpy.uint32) << 16
            layer = torch.nn.Linear(at["shape"][1], at["shape"][0], bias=False)
            layer.weight.data = torch.from_numpy(raw.view(numpy.float32).reshape(at["shape"]).copy())
            layers.append(layer); weights += layer.weight.numel()
model = torch.nn.Sequential(*layers)
config = {"n_bits": bits, "granularity": "per_grouped_channel", "group_size": 16, "enable_per_channel_scale": True}
palettizer = PostTrainingPalettizer(model, PostTrainingPalettizerConfig.from_dict({"global_config": config}))
processor, clock = time.process_time(), time.perf_counter()
palettizer.compress(num_kmeans_workers=1, inplace=True)
print(json.dumps([weights, time.process_time() - processor, time.perf_counter() - clock]))
"""


def checkpoint(shape, layers, vocab):
    """The folder of a random dense checkpoint in bf16, made where it is not."""
    size = dict(SHAPES[shape], **({"layers": layers} if layers else {}))
    folder = os.path.join(CACHE, f"dense-{shape}-{size['layers']}-{vocab}")
    if os.path.exists(folder):
        return folder
    print(f"making {folder}", file=sys.stderr)
    draft = folder + ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    os.makedirs(draft)
    d, heads, kv, head, ffn = (size[key] for key in ("dim", "heads", "kv_heads", "head_dim", "ffn"))
    config = json.load(open(os.path.join(NANO, "config.json"), encoding="utf-8"))
    config.update(vocab_size=vocab, hidden_size=d, num_hidden_layers=size["layers"], num_attention_heads=heads, num_key_value_heads=kv,
                  head_dim=head, intermediate_size=ffn, rope_theta=1e6, dtype="bfloat16", torch_dtype="bfloat16")
    with open(os.path.join(draft, "config.json"), "w", encoding="utf-8") as to:
        json.dump(config, to)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(os.path.join(NANO, name), draft)
    shapes = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,)}
    for layer in range(size["layers"]):
        b = f"model.layers.{layer}."
        shapes |= {b + "input_layernorm.weight": (d,), b + "post_attention_layernorm.weight": (d,),
                   b + "self_attn.q_norm.weight": (head,), b + "self_attn.k_norm.weight": (head,),
                   b + "self_attn.q_proj.weight": (heads * head, d), b + "self_attn.k_proj.weight": (kv * head, d),
                   b + "self_attn.v_proj.weight": (kv * head, d), b + "self_attn.o_proj.weight": (d, heads * head),
                   b + "mlp.gate_proj.weight": (ffn, d), b + "mlp.up_proj.weight": (ffn, d), b + "mlp.down_proj.weight": (d, ffn)}
    header, end = {}, 0
    for name, shape_ in shapes.items():
        begin, end = end, end + 2 * int(numpy.prod(shape_))
        header[name] = {"dtype": "BF16", "shape": list(shape_), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # One run of normal numbers, begun elsewhere for each tensor: as random to a quantizer, and quick to make.
    normal = numpy.random.default_rng(0).standard_normal(1 << 24, dtype=numpy.float32) * numpy.float32(0.02)
    pool = (normal.view(numpy.uint32) >> 16).astype(numpy.uint16)
    one = (numpy.ones(1, numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)
    with open(os.path.join(draft, "model.safetensors"), "wb") as to:
        to.write(len(text).to_bytes(8, "little") + text)
        for number, shape_ in enumerate(shapes.values()):
            count = int(numpy.prod(shape_))
            to.write((numpy.resize(numpy.roll(pool, -7919 * number), count) if len(shape_) == 2 else numpy.resize(one, count)).tobytes())
    os.rename(draft, folder)
    return folder


def weights(shape, layers):
    size = SHAPES[shape]
    d, a, kv, ffn = size["dim"], size["heads"] * size["head_dim"], size["kv_heads"] * size["head_dim"], size["ffn"]
    return (layers or size["layers"]) * (2 * d * a + 2 * d * kv + 3 * d * ffn)


def palettize(args, model, threads):
    """Seconds of each phase and of the whole process, by the processor and by the clock, and the largest memory."""
    out = os.path.join(CACHE, "palettize-out")
    for path in (out, out + ".state"):
        shutil.rmtree(path, ignore_errors=True)
    command = [args.russet, "palettize", "--model", model, "--calibration", args.text, "--out", out, "--bits", "2,3,4", "--target-bpw", "3.5",
               "--set", f"palettize.calibration_tokens={args.tokens}", "--threads", str(threads), "--json"]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        most = {"VmHWM": 0, "RssAnon": 0}

        def processor():
            try:
                fields = open(f"/proc/{child.pid}/stat", encoding="utf-8").read().rpartition(")")[2].split()
            except OSError:
                return None
            return (int(fields[11]) + int(fields[12])) / TICK

        def watch():
            while child.poll() is None:
                try:
                    for line in open(f"/proc/{child.pid}/status", encoding="utf-8"):
                        key, _, value = line.partition(":")
                        if key in most:
                            most[key] = max(most[key], int(value.split()[0]) * 1024)
                except (OSError, ValueError):
                    pass
                time.sleep(0.1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        phases, others = {}, []
        for line in child.stderr:
            try:
                stage, now = json.loads(line).get("stage"), (processor(), time.perf_counter())
            except json.JSONDecodeError:
                others.append(line)
                continue
            if stage and now[0] is not None:
                first, _ = phases.setdefault(stage, (now, now))
                phases[stage] = (first, now)
        child.stdout.read()
        watcher.join()
    if child.returncode:
        sys.exit(f"`{' '.join(command)}` ended with {child.returncode}:\n{''.join(others)[-2000:]}")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall
    spent = {stage: tuple(b - a for a, b in zip(first, last)) for stage, (first, last) in phases.items()}
    report = json.load(open(os.path.join(out, "palettize.json"), encoding="utf-8"))
    shutil.rmtree(out)
    return spent, whole, most, report


def timed(command):
    """Seconds of a command by the processor and by the clock."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"`{' '.join(command)}` ended with {child.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began


def speed(args):
    build = tools()
    model = checkpoint(args.shape, args.layers, 8192)
    full = model + ".f16.gguf"
    if not os.path.exists(full):
        run(args.russet, "convert", "--from", "hf", "--to", "gguf", "--type", "f16", "--in", model, "--out", full)
    all_weights, block = weights(args.shape, args.layers), weights(args.shape, 1)
    seconds = {}

    def add(engine, count, processor, clock):
        seconds.setdefault(engine, []).append((count, processor, clock))

    def coremltools(bits):
        counted, processor, clock = json.loads(run(args.python, "-c", COREML, os.path.join(model, "model.safetensors"), str(bits)).splitlines()[-1])
        assert counted == block
        add(f"coremltools {args.coremltools}, {bits} bits", block, processor, clock)

    def llama():
        small = model + ".iq3_s.gguf"
        add("llama.cpp, IQ3_S", all_weights, *timed([os.path.join(build, "llama-quantize"), full, small, "IQ3_S", "1"]))
        os.remove(small)

    def russet():
        spent, whole, _, _ = palettize(args, model, 1)
        for stage, (processor, clock) in spent.items():
            add(f"Russet, {stage}", all_weights, processor, clock)
        add("Russet, all of the process", all_weights, *whole)

    args.coremltools = run(args.python, "-c", "import coremltools; print(coremltools.__version__)").splitlines()[-1]
    order = [lambda: coremltools(4), lambda: coremltools(2), llama, russet]
    for round in range(args.rounds):
        turn = round % len(order)
        for engine in order[turn:] + order[:turn]:
            engine()
        print(f"round {round + 1} of {args.rounds}: {json.dumps({name: times[-1] for name, times in seconds.items()})}", file=sys.stderr)
    print(f"| {args.shape}, {args.layers} layers, {all_weights / 1e6:.1f} M weights, one thread | weights | processor, s | clock, s | M weights/s of the processor "
          f"| beside coremltools' 4 bits |\n|---|---|---|---|---|---|")
    rate = {}
    for name, times in sorted(seconds.items(), key=lambda item: not item[0].startswith("coremltools")):
        count = times[0][0]
        processor, clock = (statistics.median(t[at] for t in times) for at in (1, 2))
        rate[name] = count / processor / 1e6 if processor else float("inf")
        base = rate.get(f"coremltools {args.coremltools}, 4 bits")
        print(f"| {name} | {count / 1e6:.1f} M | {processor:.2f} | {clock:.2f} | {rate[name]:.2f} | {f'{rate[name] / base:.1f}x' if base else ''} |")


def memory(args):
    model = checkpoint(args.shape, args.layers, 49152)
    spent, (processor, wall), most, report = palettize(args, model, args.threads)
    print(f"| {args.shape}, {args.tokens} tokens, {args.threads} threads | clock, s | processor, s |\n|---|---|---|")
    for stage, (of_stage, clock) in spent.items():
        print(f"| {stage} | {clock:.1f} | {of_stage:.1f} |")
    print(f"| all | {wall:.1f} | {processor:.1f} |")
    size = os.path.getsize(os.path.join(model, "model.safetensors"))
    print(f"\n{report['weights'] / 1e9:.2f} G weights, a file of {size / 1e9:.2f} GB, a package of {report['bytes'] / 1e9:.2f} GB ({report['bpw']:.3f} bits a weight). "
          f"Largest resident set {most['VmHWM'] / 1e9:.2f} GB, of it not of files at most {most['RssAnon'] / 1e9:.2f} GB.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="4 for speed, all of the shape for memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512, help="of calibration")
    parser.add_argument("--threads", type=int, default=2, help="for memory")
    parser.add_argument("--python", default=sys.executable, help="one that has coremltools and torch")
    parser.add_argument("--text", help="what calibrates; the project's documents by default")
    target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    parser.add_argument("--russet", default=os.path.join(target, "release/russet"))
    args = parser.parse_args()
    if not args.text:
        args.text = os.path.join(CACHE, "documents.txt")
        os.makedirs(CACHE, exist_ok=True)
        with open(args.text, "w", encoding="utf-8") as to:
            for path in sorted(glob.glob(os.path.join(ROOT, "docs", "*.md"))):
                to.write(open(path, encoding="utf-8").read())
    if args.what == "speed":
        args.shape, args.layers = args.shape or "0.6b", args.layers or 4
        speed(args)
    else:
        args.shape = args.shape or "3b"
        memory(args)


main()
