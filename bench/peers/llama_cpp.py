#!/usr/bin/env python3
"""Decode and prefill, Russet beside llama.cpp: alternating runs on random weights of one shape, a table for BENCHMARKS.md.

    cargo build --release && python3 bench/peers/llama_cpp.py 0.6b [--types Q4_0,Q4_K_M] [--rounds 3] [-p 512] [-n 128] [-b 8]
    python3 bench/peers/llama_cpp.py 0.6b --ik ../ik_llama.cpp [--ik-types IQ4_KS,IQ3_K]

llama.cpp is the one in the source distribution of llama_cpp_python on PyPI, ik_llama.cpp a checkout that `--ik` names; both are built
with their own instructions for this machine. They and the random GGUF files stay in $RUSSET_CACHE/peers (~/.cache/russet/peers). The
first run takes minutes, `--prepare` does nothing else. Keys and values are what each keeps them in by itself: 8 bits and f16. Each round runs every engine once, in an order that turns with the round; figures are medians of rounds. `-b` decodes so many
sequences at once instead of one. Memory reads are russet's probe, made in each of its runs.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile

VERSION = "0.3.36"
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CACHE = os.path.join(os.environ.get("RUSSET_CACHE", os.path.expanduser("~/.cache/russet")), "peers")
VOCAB = 49152
SHAPES = {
    "0.6b": dict(dim=1024, layers=28, heads=16, kv_heads=8, head_dim=128, ffn=3072),
    "3b": dict(dim=3072, layers=26, heads=24, kv_heads=8, head_dim=128, ffn=8192),
}


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, cwd=CACHE if os.path.isdir(CACHE) else None, **more)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


def tools():
    """A folder with llama.cpp's programs, built where they are not."""
    names = ["llama-bench", "llama-batched-bench", "llama-quantize", "llama-imatrix"]
    return built("llama-build", names, source_of_llama, "OFF")


def tools_of_ik(source):
    """A folder with ik_llama.cpp's programs, built where they are not."""
    names = ["llama-bench", "llama-batched-bench", "llama-quantize"]
    return built("ik-build", names, lambda python, path: source, "ON")  # there llama-bench is an example


def built(folder, names, source, examples):
    """The folder with the programs `names`, made in `folder` of what `source` has where they are not."""
    folder = os.path.join(CACHE, folder)
    build = os.path.join(folder, "bin")
    if all(os.path.exists(os.path.join(build, name)) for name in names):
        return build
    os.makedirs(CACHE, exist_ok=True)
    python = os.path.join(CACHE, "venv", "bin", "python")
    if not os.path.exists(python):
        run(sys.executable, "-m", "venv", os.path.join(CACHE, "venv"))
    print(f"building {folder}", file=sys.stderr)
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    run(python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "cmake", "ninja", "scikit_build_core", "gguf", "numpy")
    path = dict(os.environ, PATH=os.path.dirname(python) + os.pathsep + os.environ["PATH"])
    options = ["CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF",
               "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_SERVER=OFF", f"LLAMA_BUILD_EXAMPLES={examples}"]
    run("cmake", "-S", source(python, path), "-B", folder, "-G", "Ninja", *[f"-D{o}" for o in options], env=path)
    run("cmake", "--build", folder, "--target", *names, env=path)
    return build


def source_of_llama(python, path):
    """The folder with llama.cpp's source, fetched where it is not."""
    source = os.path.join(CACHE, f"llama_cpp_python-{VERSION}")
    if not os.path.exists(source):
        archive = source + ".tar.gz"
        if not os.path.exists(archive):
            run(python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest",
                CACHE, f"llama_cpp_python=={VERSION}", env=path)
        # Under its name only when it is whole and cured.
        draft = os.path.join(CACHE, "llama-source.draft")
        shutil.rmtree(draft, ignore_errors=True)
        with tarfile.open(archive) as files:
            files.extractall(draft, filter="data")
        # gcc 12 takes the intrinsic to read 8 of the 64 bytes, and leaves the stores to the others out: tiles are then none.
        tiles = os.path.join(draft, os.path.basename(source), "vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp")
        with open(tiles) as file:
            text = file.read()
        with open(tiles, "w") as file:
            load = "    _tile_loadconfig(&tc);"
            file.write(text.replace(load, '    asm volatile("" : : "r"(&tc) : "memory");\n' + load))
        os.rename(os.path.join(draft, os.path.basename(source)), source)
        os.rmdir(draft)
    return os.path.join(source, "vendor", "llama.cpp")


# Runs in the environment of `built`, which has gguf.
WRITE = """
import json, sys, numpy, gguf
out, shape, vocab = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
d, layers, heads, kv, head, ffn = (shape[k] for k in ("dim", "layers", "heads", "kv_heads", "head_dim", "ffn"))
w = gguf.GGUFWriter(out, "qwen3")
w.add_block_count(layers); w.add_context_length(32768); w.add_embedding_length(d); w.add_feed_forward_length(ffn)
w.add_head_count(heads); w.add_head_count_kv(kv); w.add_key_length(head); w.add_value_length(head)
w.add_rope_freq_base(1e6); w.add_layer_norm_rms_eps(1e-6); w.add_file_type(1); w.add_vocab_size(vocab)
w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("qwen2")
w.add_token_list([f"t{i}" for i in range(vocab)]); w.add_token_types([1] * vocab); w.add_token_merges(["t 0"])
w.add_eos_token_id(vocab - 1); w.add_pad_token_id(vocab - 1); w.add_add_bos_token(False)
# One run of normal numbers, begun elsewhere for each tensor: as random to a quantizer, and quick to make.
pool = (numpy.random.default_rng(0).standard_normal(1 << 25, dtype=numpy.float32) * 0.02).astype(numpy.float16)
count = 0
def matrix(name, rows, cols):
    global count
    count += 1
    w.add_tensor(name, numpy.resize(numpy.roll(pool, -7919 * count), rows * cols).reshape(rows, cols))
def norm(name, width):
    w.add_tensor(name, numpy.ones(width, numpy.float32))
matrix("token_embd.weight", vocab, d); norm("output_norm.weight", d)
for layer in range(layers):
    b = f"blk.{layer}."
    norm(b + "attn_norm.weight", d); norm(b + "ffn_norm.weight", d)
    norm(b + "attn_q_norm.weight", head); norm(b + "attn_k_norm.weight", head)
    matrix(b + "attn_q.weight", heads * head, d); matrix(b + "attn_k.weight", kv * head, d)
    matrix(b + "attn_v.weight", kv * head, d); matrix(b + "attn_output.weight", d, heads * head)
    matrix(b + "ffn_gate.weight", ffn, d); matrix(b + "ffn_up.weight", ffn, d); matrix(b + "ffn_down.weight", d, ffn)
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
"""


def model(build, name, kind):
    """The random GGUF file of a shape in a quantization that `build` knows, made where it is not."""
    path = os.path.join(CACHE, f"random-{name}-{kind}.gguf")
    if os.path.exists(path):
        return path
    print(f"making {path}", file=sys.stderr)
    draft = path + ".draft"
    if kind == "F16":
        python = os.path.join(CACHE, "venv", "bin", "python")
        run(python, "-c", WRITE, draft, json.dumps(SHAPES[name]), str(VOCAB))
    else:
        run(os.path.join(build, "llama-quantize"), model(build, name, "F16"), draft, kind, "2")
    os.rename(draft, path)
    return path


def llama(build, args, path):
    """Prompt tokens and generated tokens a second."""
    if args.b > 1:
        context = str(args.b * (args.n + 1) + 64)
        command = [os.path.join(build, "llama-batched-bench"), "-m", path, "-npp", "1", "-ntg", str(args.n), "-npl", str(args.b),
                   "-c", context, "-t", str(args.threads), "-tb", str(args.threads)]
        # A row of the table that both print, ik_llama.cpp as an error: PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S.
        lines = run("sh", "-c", 'exec "$0" "$@" 2>&1', *command).splitlines()
        cells = [line.split("|")[1:-1] for line in lines]
        rows = [row for row in cells if len(row) == 10 and row[0].strip().isdigit()]
        return None, float(rows[-1][7])
    command = ["-m", path, "-p", str(args.p), "-n", str(args.n), "-r", "1", "-t", str(args.threads), "-o", "json"]
    tests = json.loads(run(os.path.join(build, "llama-bench"), *command))
    prefill, = (test["avg_ts"] for test in tests if test["n_prompt"])
    decode, = (test["avg_ts"] for test in tests if test["n_gen"])
    return prefill, decode


def russet(args):
    prompt = str(args.p if args.b == 1 else 1)
    command = [args.russet, "bench", "--random", args.shape, "--bpw", str(args.bpw), "-p", prompt, "-n", str(args.n), "-b",
               str(args.b), "-r", "1", "--threads", str(args.threads), "--json"]
    return json.loads(run(*command))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--types", default="Q4_0,Q4_K_M,Q3_K_M,IQ3_S")
    parser.add_argument("--ik", metavar="FOLDER", help="a checkout of ik_llama.cpp, to be measured too")
    parser.add_argument("--ik-types", default="Q4_0,IQ4_KS,IQ3_K,IQ3_S")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bpw", type=float, default=3.5)
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("-b", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="build and make the models, measure nothing")
    target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    parser.add_argument("--russet", type=os.path.abspath, default=os.path.join(os.path.abspath(target), "release/russet"))
    args = parser.parse_args()
    peers = {"llama.cpp": (tools(), args.types.split(","))}
    if args.ik:
        peers["ik_llama.cpp"] = (tools_of_ik(os.path.abspath(args.ik)), args.ik_types.split(","))
    # By name and type: the programs and the file.
    engines = {(peer, kind): (build, model(build, args.shape, kind)) for peer, (build, kinds) in peers.items() for kind in kinds}
    if args.prepare:
        return
    order = [*engines, "russet"]
    rates = {engine: [] for engine in order}
    ours = []
    for round in range(args.rounds):
        turn = round % len(order)
        for engine in order[turn:] + order[:turn]:
            if engine == "russet":
                ours.append(russet(args))
                prefill, decode = (test["avg_ts"] for test in ours[-1]["tests"])
                rates[engine].append((prefill if args.b == 1 else None, decode))
            else:
                build, path = engines[engine]
                rates[engine].append(llama(build, args, path))
            print(f"round {round + 1}: {engine} {rates[engine][-1]}", file=sys.stderr)
    median = lambda engine, at: statistics.median(r[at] for r in rates[engine]) if rates[engine][0][at] else None
    word = lambda rate: "" if rate is None else f"{rate:.1f}"
    print(f"| {args.shape} | pp{args.p} | tg{args.n}, {args.b} at once |\n|---|---|---|")
    for peer, kind in engines:
        print(f"| {peer} {kind} | {word(median((peer, kind), 0))} | {word(median((peer, kind), 1))} |")
    print(f"| Russet, {args.bpw} bpw | {word(median('russet', 0))} | {word(median('russet', 1))} |")
    for peer in peers:
        best = [max((median(engine, at) or 0) for engine in engines if engine[0] == peer) for at in (0, 1)]
        ratios = [f"{median('russet', at) / best[at]:.2f}" if best[at] else "" for at in (0, 1)]
        print(f"| Russet beside the best of {peer} | {ratios[0]} | {ratios[1]} |")
    of = lambda key: statistics.median(run[key] for run in ours)
    print(f"\nRusset: weights {of('decode_gb_s'):.1f} GB/s of {of('dram_gb_s'):.1f} that memory reads; "
          f"prefill {of('prefill_gop_s'):.0f} GOP/s of {of('int8_gop_s'):.0f}.")


if __name__ == "__main__":
    main()
