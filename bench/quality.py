#!/usr/bin/env python3
"""What palettes and recovery cost a model in quality: palettizes, recovers, evaluates, prints tables for BENCHMARKS.md.

    cargo build --release && bench/quality.py --model models/nano/checkpoint --calibration texts/training.jsonl.zst \\
        --heldout texts/heldout.jsonl.zst --shards runs/nano/02-tokens --splits books code documentation [--out runs/quality] [--llama DIR] [GROUP ...]

Groups: widths (the bits that projections may have, at 2 to 4 bits a weight), pairs (the same with palettes of pairs), ideas (each one added to plain k-means, at 3.5
bits), parts (weights and table, then activations in 8 bits, then the cache; the cache alone), recover (ranks 8, 16 and 32, and
rank 16 against tokens), llama (types of llama.cpp through GGUF, with an importance matrix of the same text; needs --llama, a
folder with llama-quantize and llama-imatrix, the program zstd, and the `gguf` package with numpy; rows of a length that is no
multiple of 256 get another type there, so look at the bits, and at the types, which are printed), qat (palettes that learn, by each method, beside rank 16 on
as many tokens), tables (the embedding in 4 bits beside 8) and rotation (Hadamard rotations beside none). What calibrates is made by `bench/calibration.py`. Perplexity of each is on the same text in the same windows by `russet eval
perplexity`: llama.cpp's weights are decoded by the `gguf` package and read back as f32, so that only weights differ and not
who multiplies them. What stands under --out is not done again; it is of one model and one set of texts.
"""
import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KNOWN = ["widths", "pairs", "ideas", "parts", "recover", "qat", "llama", "tables", "rotation"]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("groups", nargs="*", metavar="GROUP", default=[], help="all by default, llama only with --llama, recover and qat only with --shards")
parser.add_argument("--model", default=f"{ROOT}/models/nano/checkpoint", help="a checkpoint; models/nano by default")
parser.add_argument("--calibration", default=f"{ROOT}/data/tales/train.jsonl.zst", help="one file of text to calibrate on; tales by default")
parser.add_argument("--heldout", default=f"{ROOT}/data/tales/heldout.jsonl.zst", help="one file of text to measure on; tales by default")
parser.add_argument("--shards", help="the tokens artifact of the model's run, which recovery trains on (group recover)")
parser.add_argument("--splits", nargs="+", default=["train"], help="of the shards, mixed in equal parts; those of nano are books, code and documentation")
parser.add_argument("--tokens", type=float, nargs="+", default=[0.02, 0.1, 0.5, 2], help="millions of tokens that recovery of rank 16 spends")
parser.add_argument("--window", type=int, default=512)
parser.add_argument("--out", default="runs/quality")
parser.add_argument("--llama", help="a folder with llama-quantize and llama-imatrix")
parser.add_argument("--russet", default=os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"), "release/russet"))
parser.add_argument("--threads", type=int, help="all cores by default; results are the same on any number")
args = parser.parse_args()
groups = args.groups or [group for group in KNOWN if (group != "llama" or args.llama) and (group not in ("recover", "qat") or args.shards)]
if unknown := [group for group in groups if group not in KNOWN]:
    sys.exit(f"no group {', '.join(unknown)}; there are {', '.join(KNOWN)}")
if "llama" in groups and not args.llama:
    sys.exit("the group llama needs --llama, a folder with llama-quantize and llama-imatrix")
if {"recover", "qat"} & set(groups) and not args.shards:
    sys.exit("the groups recover and qat need --shards, the tokens artifact of the model's run")
os.makedirs(args.out, exist_ok=True)
inputs = {name: os.path.abspath(path) for name in ("model", "calibration", "heldout", "shards") if (path := getattr(args, name))}
version = subprocess.run([args.russet, "--version"], capture_output=True, text=True, check=True).stdout.strip()
settings = {**inputs, "splits": args.splits, "window": args.window, "version": version}
try:
    kept = json.load(open(f"{args.out}/settings.json", encoding="utf-8"))
except FileNotFoundError:
    kept = {}
if changed := [name for name in settings if kept.get(name, settings[name]) != settings[name]]:
    sys.exit(f"{args.out} has results of another {changed[0]}: {kept[changed[0]]}; name another --out")
with open(f"{args.out}/settings.json", "w", encoding="utf-8") as to:
    json.dump({**kept, **settings}, to)


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"`{' '.join(map(str, command))}` ended with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


THREADS = ("--threads", args.threads) if args.threads else ()


def russet(*command):
    return json.loads(run(args.russet, *command, *THREADS, "--json"))


def evaluated(name, *options):
    """Perplexity, divergence from the checkpoint and the like, kept as NAME.json."""
    path = f"{args.out}/{name}.json"
    if not os.path.exists(path):
        print(f"{name} …", file=sys.stderr, flush=True)
        scores = russet("eval", "perplexity", "--text", args.heldout, "--window", args.window, *options)
        with open(path + ".tmp", "w", encoding="utf-8") as to:
            json.dump(scores, to)
        os.replace(path + ".tmp", path)
    return json.load(open(path, encoding="utf-8"))


def package(name, *options):
    """A package of the checkpoint and what its making reported."""
    path = f"{args.out}/{name}.package"
    if not os.path.exists(path):
        print(f"{name}: palettizing …", file=sys.stderr, flush=True)
        russet("palettize", "--model", args.model, "--calibration", args.calibration, "--out", path, *options)
    return path, json.load(open(f"{path}/palettize.json", encoding="utf-8"))


def against(name, path, *options):
    return evaluated(name, "--model", path, "--against", args.model, *options)


BASE = evaluated("checkpoint", "--model", args.model)


def heading(title, first):
    print(f"\n{title}\n\n{first} bits a weight | MB | perplexity | more | KLD | same top |\n{'|---' * (first.count('|') + 5)}|")
    sys.stdout.flush()


def row(label, bits, size, scores):
    more = 100 * (scores["perplexity"] / BASE["perplexity"] - 1)
    print(f"| {label} | {bits:.3f} | {size / 1e6:.2f} | {scores['perplexity']:.3f} | {more:+.2f} % | {scores['kld']:.4f} | "
          f"{100 * scores['same_top']:.1f} % |")
    sys.stdout.flush()


def palettized(label, name, *options):
    path, report = package(name, *options)
    row(label, report["bpw"], report["bytes"], against(name, path))


print(f"Uncompressed: perplexity {BASE['perplexity']:.3f} of {BASE['tokens']} tokens, {BASE['bits_per_byte']:.4f} bits per byte.")

PLAIN = ("--set", "palettize.error_feedback=false")
# Packages that several groups have, with their options.
AFM = ("w24-3.5", "--bits", "2,4", "--target-bpw", 3.5)
DEFAULT = ("w234-3.5", "--bits", "2,3,4", "--target-bpw", 3.5)
TWO = ("w2", "--bits", 2, "--target-bpw", 4)
THREE = ("w3", "--bits", 3, "--target-bpw", 4)
FOUR = ("w4", "--bits", 4, "--target-bpw", 5)
FOUR_TABLE = ("t4-3.5", *DEFAULT[1:], "--table-bits", 4)
if "widths" in groups:
    heading("Widths", "| projections have |")
    palettized("2", *TWO)
    for target in (2.5, 3.0):
        palettized("2 or 4", f"w24-{target}", "--bits", "2,4", "--target-bpw", target)
        palettized("2, 3 or 4", f"w234-{target}", "--bits", "2,3,4", "--target-bpw", target)
    palettized("3", *THREE)
    palettized("2 or 4", *AFM)
    palettized("2, 3 or 4", *DEFAULT)
    for tokens in (8192, 131072):
        palettized(f"2, 3 or 4, {tokens:,} tokens of calibration", f"c-{tokens}", *DEFAULT[1:], "--set", f"palettize.calibration_tokens={tokens}")
    palettized("2, 3 or 4", "w234-3.69", "--bits", "2,3,4", "--target-bpw", 3.69)
    palettized("3 or 4", "w34-3.5", "--bits", "3,4", "--target-bpw", 3.5)
    palettized("4", *FOUR)
if "pairs" in groups:
    heading("Palettes of pairs", "| projections have |")
    palettized("2v", "w2v", "--bits", "2v", "--target-bpw", 4)
    for target in (2.5, 3.0, 3.5):
        palettized("2v or 4", f"w2v4-{target}", "--bits", "2v,4", "--target-bpw", target)
        palettized("2v, 3v or 4", f"w2v3v4-{target}", "--bits", "2v,3v,4", "--target-bpw", target)
        palettized("2, 2v, 3, 3v or 4", f"w22v33v4-{target}", "--bits", "2,2v,3,3v,4", "--target-bpw", target)
    palettized("3v", "w3v", "--bits", "3v", "--target-bpw", 5)
    palettized("4v", "w4v", "--bits", "4v", "--target-bpw", 9)
if "ideas" in groups:
    heading("Ideas, at 3.5 bits of 2 or 4", "| |")
    options = AFM[1:]
    palettized("k-means of weights alone, bits by Fisher information", "i-none", *options, "--set", 'palettize.weighting="none"', *PLAIN)
    palettized("weighed by activations", "i-activation", *options, "--set", 'palettize.weighting="activation"', *PLAIN)
    palettized("weighed by Fisher information", "i-fisher", *options, *PLAIN)
    palettized("and error feedback", *AFM)
    palettized("and sensitivities measured", "i-measured", *options, "--set", 'palettize.sensitivity="measured"')
    palettized("and 3 bits, sensitivities predicted (the default)", *DEFAULT)
    palettized("and rotated", f"h-{DEFAULT[0]}", *DEFAULT[1:], "--set", 'palettize.rotation="hadamard"')


def dense_of(name, path):
    """A package's weights decoded to f32."""
    dense = f"{args.out}/{name}.dense"
    if not os.path.exists(dense):
        run(args.russet, "convert", "--from", "hf", "--to", "hf", "--in", path, "--out", dense)
    return dense


def with_table(name, dense):
    """The checkpoint with the embedding of another one of its shape in f32."""
    place, table = f"{args.out}/{name}.tabled", "model.embed_tokens.weight"
    if not os.path.exists(place):
        def found(file):
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))[table]
            assert header["dtype"] == "F32", f"{table} is {header['dtype']}, and only f32 can be put in its place"
            begin, end = header["data_offsets"]
            return 8 + size + begin, end - begin

        os.makedirs(place + ".tmp", exist_ok=True)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"):
            if os.path.exists(f"{args.model}/{file}"):
                shutil.copy(f"{args.model}/{file}", place + ".tmp")
        with open(f"{dense}/model.safetensors", "rb") as come, open(f"{place}.tmp/model.safetensors", "r+b") as go:
            (source, length), (target, same) = found(come), found(go)
            assert length == same, f"{table} has {length} bytes in {dense}, and {same} in {args.model}"
            come.seek(source)
            go.seek(target)
            go.write(come.read(length))
        os.rename(place + ".tmp", place)
    return place


if "parts" in groups:
    heading("Parts", "| |")
    whole = os.path.getsize(f"{args.model}/model.safetensors")
    row("cache in 8 bits, checkpoint", 32, whole, against("p-cache", args.model, "--cache-type", "q8"))
    for bits, (name, *options) in ((8, DEFAULT), (4, FOUR_TABLE)):
        path, _ = package(name, *options)
        row(f"table in {bits} bits, checkpoint", 32, whole, against(f"p-table-{bits}", with_table(name, dense_of(name, path))))
    for label, (name, *options) in (("palettes of 4 bits", FOUR), ("3.5 bits", DEFAULT)):
        path, report = package(name, *options)
        dense = dense_of(name, path)
        row(f"{label}, weights and table alone", report["bpw"], report["bytes"], against(f"p-{name}-dense", dense))
        row(f"{label}, and activations in 8 bits", report["bpw"], report["bytes"], against(name, path))
        row(f"{label}, and the cache", report["bpw"], report["bytes"], against(f"p-{name}-cache", path, "--cache-type", "q8"))


def toml(**tables):
    lines = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"] + [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def learnt(name, stage, package, millions, **tables):
    """What the stage leaves of a package, trained on so many tokens with the checkpoint as its teacher."""
    out = f"{args.out}/{name}"
    if not os.path.exists(out):
        print(f"{name}: training …", file=sys.stderr, flush=True)
        steps = max(4, round(millions * 1e6 / 4096))
        inputs = dict(tokens=os.path.abspath(args.shards), package=os.path.abspath(package), teacher=os.path.abspath(args.model))
        train = dict(steps=steps, batch_sequences=8, sequence_length=512, peak_lr=1e-3, warmup_steps=max(1, steps // 10),
                     checkpoint_every=100, seed=1)
        with open(f"{out}.toml", "w", encoding="utf-8") as to:
            to.write(toml(stage=stage, inputs=inputs, train=train, **tables))
            for split in args.splits:
                to.write(f'\n[[data.mixture]]\nsplit = "{split}"\nweight = 1\n')
        run(args.russet, stage, f"{out}.toml", "--out", out, *THREADS)
    return out


def recovered(bits, rank, millions):
    """The package of so many bits under an adapter of that rank."""
    path, report = package(*bits)
    name = f"r-{bits[0]}-{rank}-{millions}"
    adapter = learnt(name, "recover", path, millions, adapter=dict(rank=rank))
    size = report["bytes"] + os.path.getsize(f"{adapter}/adapter_model.safetensors")
    return report["bpw"], size, against(name, path, "--adapter", adapter)


if "recover" in groups:
    for title, bits in (("3.5 bits of 2, 3 or 4", DEFAULT), ("2 bits", TWO)):
        heading(f"Recovery of {title}; MB with the adapter", "| rank | M tokens |")
        path, report = package(*bits)
        row("none | 0", report["bpw"], report["bytes"], against(bits[0], path))
        for rank in (8, 16, 32):
            for millions in args.tokens if rank == 16 else [0.5]:
                row(f"{rank} | {millions}", *recovered(bits, rank, millions))

if "qat" in groups:
    for title, bits in (("3.5 bits of 2, 3 or 4", DEFAULT), ("2 bits", TWO)):
        millions = 0.5
        heading(f"Palettes that learn, {title}, {millions} M tokens", "| |")
        path, report = package(*bits)
        row("as palettized", report["bpw"], report["bytes"], against(bits[0], path))
        for method in ("tables", "straight-through", "dkm"):
            name = f"q-{bits[0]}-{method}-{millions}"
            made = learnt(name, "qat", path, millions, qat=dict(method=method))
            row(method, report["bpw"], report["bytes"], against(name, made))
        row("rank 16 beside it; MB with it", *recovered(bits, 16, millions))

if "tables" in groups:
    heading("Tables, at 3.5 bits of 2, 3 or 4", "| the embedding has |")
    palettized("8", *DEFAULT)
    palettized("4", *FOUR_TABLE)
if "rotation" in groups:
    heading("Rotation", "| projections have | rotation |")
    for label, (name, *options) in (("2", TWO), ("3", THREE), ("2, 3 or 4", DEFAULT), ("4", FOUR)):
        palettized(f"{label} | none", name, *options)
        palettized(f"{label} | Hadamard", f"h-{name}", *options, "--set", 'palettize.rotation="hadamard"')

if "llama" in groups:
    import gguf
    import numpy

    heading("llama.cpp's types, with an importance matrix of the same text", "| |")
    full = f"{args.out}/llama-f32.gguf"
    if not os.path.exists(full):
        run(args.russet, "convert", "--from", "hf", "--to", "gguf", "--type", "f32", "--in", args.model, "--out", full)
    matrix = f"{args.out}/llama.imatrix"
    if not os.path.exists(matrix):
        # The sample that palettes are calibrated on is drawn by `palettize`; here as many tokens of pieces drawn from the same text.
        text = subprocess.run(["zstd", "-dcf", args.calibration], capture_output=True, check=True).stdout
        rows = [json.loads(line)["text"] if line.startswith("{") else line for line in text.decode("utf-8", "replace").split("\n") if line]
        pieces = [row[at : at + 2000] for row in rows for at in range(0, len(row), 2000)]
        random.Random(1).shuffle(pieces)
        with open(f"{args.out}/llama.txt", "w", encoding="utf-8") as to:
            to.write("\n".join(pieces[:200]) + "\n")
        run(f"{args.llama}/llama-imatrix", "-m", full, "-f", f"{args.out}/llama.txt", "-o", matrix, "-c", 512, "--chunks", 64)

    def decoded(path, to):
        """The file with every tensor decoded to f32."""
        reader = gguf.GGUFReader(path)
        writer = gguf.GGUFWriter(to, reader.fields["general.architecture"].contents())
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                writer.add_key_value(field.name, field.contents(), kind, sub_type=field.types[-1] if len(field.types) > 1 else None)
        for tensor in reader.tensors:
            data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, numpy.ascontiguousarray(data, dtype=numpy.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        blocks = [t for t in reader.tensors if t.name.startswith("blk.") and t.data.ndim == 2]
        weights, types = sum(t.n_elements for t in blocks), collections.Counter()
        for tensor in blocks:
            types[tensor.tensor_type.name] += int(tensor.n_elements)
        table = [t.tensor_type.name for t in reader.tensors if t.name in ("token_embd.weight", "output.weight")]
        shares = [f"{name} {100 * count / weights:.1f} %" for name, count in types.most_common()]
        made.append(f"{', '.join(shares)}; table {', '.join(table)}")
        return 8 * sum(t.n_bytes for t in blocks) / weights, sum(t.n_bytes for t in reader.tensors)

    kinds, made = ("Q2_K", "IQ3_XXS", "IQ3_XS", "IQ3_S", "Q3_K_M", "IQ4_XS", "Q4_K_M"), []
    for kind in kinds:
        small, name = f"{args.out}/llama-{kind}.gguf", f"l-{kind}"
        if not os.path.exists(small):
            run(f"{args.llama}/llama-quantize", "--imatrix", matrix, full, small, kind)
        dense = f"{args.out}/{name}.dense"
        bits, size = decoded(small, f"{args.out}/decoded.gguf")
        if not os.path.exists(f"{args.out}/{name}.json"):
            shutil.rmtree(dense, ignore_errors=True)
            run(args.russet, "convert", "--from", "gguf", "--to", "hf", "--in", f"{args.out}/decoded.gguf", "--out", dense)
        row(kind, bits, size, against(name, dense))
    print("\nTypes of the projections' weights:\n")
    for kind, types in zip(kinds, made):
        print(f"- {kind}: {types}")
