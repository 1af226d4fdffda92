#!/usr/bin/env python3
"""Compares Russet's GGUF with two programs that are not Russet: the `gguf` package's reader, and llama.cpp itself.

    python golden/gguf.py --russet target/release/russet [--llama-source DIR --llama-build DIR] FOLDER...

For each checkpoint folder and each type that Russet writes, `russet convert --to gguf` makes a file. Then

- the `gguf` package (0.19, with numpy) reads it and decodes every tensor, and `russet convert --from gguf --to hf` does too: both must say the same,
  to 1e-6 of the largest, since a scale times a whole number may round once or twice. How far that is from the checkpoint is printed;
- with llama.cpp (a source tree and a build of its static libraries; PyPI's llama_cpp_python has the source under vendor/llama.cpp), a small program
  (gguf_greedy.cpp) loads the file: ids of texts and the likeliest continuations must be Russet's, of F32 exactly. llama-quantize
  makes Q6_K and Q4_K of F32, which Russet must read as the package does.

Exits 1 if anything differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path = [p for p in sys.path if pathlib.Path(p or ".").resolve() != pathlib.Path(__file__).resolve().parent]  # this file is called gguf too

import gguf
import numpy as np

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"]
TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "The quick brown fox jumps over the lazy dog.\n\nIt was 1984; pi is 3.14159265, and 007 is not 7.",
    "  leading and trailing spaces  ",
    "tabs\tand\r\nline ends\n\n\n   indented",
    'fn main() { println!("{}", x[0] += 1); } // don\'t',
    "“Well,” said the fox — and he’d said it before — “so it is.”",
    "a naïve café",
    "emoji \U0001f34e and \u65e5\u672c\u8a9e",
]
COUNT = 48
READ = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`{' '.join(map(str, command))}` exited {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def checkpoint(folder):
    """Tensors of a Hugging Face folder in f32, by name."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        for name, info in json.loads(raw[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            start, end = (8 + size + at for at in info["data_offsets"])
            data = raw[start:end]
            match info["dtype"]:
                case "F32":
                    values = np.frombuffer(data, "<f4")
                case "F16":
                    values = np.frombuffer(data, "<f2").astype(np.float32)
                case "BF16":
                    values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            tensors[name] = values.reshape(info["shape"])
    return tensors


LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def by_package(path, config):
    """Tensors of a GGUF file in f32 as the gguf package decodes them, under their names in a checkpoint."""
    tensors, types = {}, {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
        if tensor.name == "rope_freqs.weight":
            continue
        whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
        parts = tensor.name.removesuffix(".weight").split(".")
        name = whole[parts[0]] if parts[0] in whole else f"model.layers.{parts[1]}.{LAYER[parts[2]]}"
        if config["model_type"] == "llama" and name.endswith(("q_proj", "k_proj")):
            heads = config["num_attention_heads"] if name.endswith("q_proj") else config["num_key_value_heads"]
            # The converter of llama.cpp: halves to pairs. Here back.
            values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        tensors[name + ".weight"] = values
    return tensors, types


def compare(russet, path, folder, scratch, label):
    """Both decoders of a file against one another; says how far the file is from the checkpoint."""
    back = scratch / f"back-{label}"
    run(russet, "convert", "--from", "gguf", "--to", "hf", "--in", path, "--out", back)
    config = json.loads((back / "config.json").read_text())
    ours, (theirs, types), original = checkpoint(back), by_package(path, config), checkpoint(folder)
    original.pop("lm_head.weight", None) if "lm_head.weight" not in theirs else None
    fine = sorted(ours) == sorted(theirs) == sorted(original)
    if not fine:
        print(f"  {label}: other tensors: {sorted(set(ours) ^ set(theirs) | set(theirs) ^ set(original))[:4]}")
        return False
    largest, off, size = 0.0, 0.0, 0.0
    for name, wanted in theirs.items():
        largest = max(largest, np.abs(ours[name] - wanted).max() / max(np.abs(wanted).max(), 1e-30))
        if wanted.ndim == 2:
            off += float(((original[name] - wanted).astype(np.float64) ** 2).sum())
            size += float((original[name].astype(np.float64) ** 2).sum())
    fine = largest <= 1e-6
    print(f"  {label}: {'same' if fine else 'DIFFERS'} (largest {largest:.1e}); {(off / size) ** 0.5:.5f} of the checkpoint's matrices; {types}")
    return fine


def greedy(program, russet, path, folder, exact, label):
    lines = run(program, path, COUNT, *TEXTS).splitlines()
    fine, same_ids, same_text = True, 0, 0
    for text, ids, made in zip(TEXTS, lines[::2], lines[1::2]):
        ids, made = ([int(id) for id in line.split()] for line in (ids, made))
        wanted = json.loads(run(russet, "tokenizer", "encode", "--model", folder, "--text", text, "--json"))["ids"]
        if ids != wanted:
            print(f"  {label}: ids of {text!r} differ: llama.cpp {ids}, russet {wanted}")
            fine = False
            continue
        same_ids += 1
        told = json.loads(run(russet, "generate", "--model", folder, "--prompt", text, "--temperature", 0, "--max-tokens", COUNT, "--json"))
        same = told["token_ids"] == made
        same_text += same
        if exact and not same:
            print(f"  {label}: the continuation of {text!r} differs: llama.cpp {made}, russet {told['token_ids']}")
            fine = False
    print(f"  {label}: llama.cpp has the ids of {same_ids} and the continuation of {same_text} of {len(TEXTS)} texts")
    return fine


def build(source, build_folder, scratch):
    program = scratch / "gguf_greedy"
    here = pathlib.Path(__file__).resolve().parent
    libraries = [f"{build_folder}/{part}" for part in ["src/libllama.a", "ggml/src/libggml.a", "ggml/src/libggml-cpu.a", "ggml/src/libggml-base.a"]]
    # Backends refer to one another, so the libraries are a group.
    run("g++", "-O1", "-std=c++17", f"-I{source}/include", f"-I{source}/ggml/include", here / "gguf_greedy.cpp", "-o", program,
        "-Wl,--start-group", *libraries, "-Wl,--end-group", "-fopenmp", "-lpthread", "-ldl", "-lm")
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--russet", required=True)
    parser.add_argument("--llama-source", type=pathlib.Path)
    parser.add_argument("--llama-build", type=pathlib.Path)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    fine = True
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        program = build(args.llama_source, args.llama_build, place) if args.llama_build else None
        for number, folder in enumerate(args.folders):
            print(folder)
            scratch = place / str(number)
            scratch.mkdir()
            for kind in TYPES:
                path = scratch / f"{kind}.gguf"
                run(args.russet, "convert", "--from", "hf", "--to", "gguf", "--type", kind, "--in", folder, "--out", path)
                fine &= compare(args.russet, path, folder, scratch, kind)
                if program:
                    # Of a quantized file Russet's own reading is compared: the same weights on both sides.
                    against = folder if kind == "f32" else scratch / f"back-{kind}"
                    fine &= greedy(program, args.russet, path, against, kind == "f32", kind)
            if program:
                for kind in ["Q6_K", "Q4_K_S"]:
                    path = scratch / f"theirs-{kind}.gguf"
                    run(args.llama_build / "bin/llama-quantize", "--pure", scratch / "f32.gguf", path, kind)
                    other = {t.tensor_type.name for t in gguf.GGUFReader(path).tensors} - READ
                    if other:
                        print(f"  llama-quantize {kind}: skipped: where rows are not whole blocks it takes {', '.join(sorted(other))}, which Russet does not read")
                        continue
                    fine &= compare(args.russet, path, folder, scratch, f"llama-quantize {kind}")
    print("all the same" if fine else "something differs")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
