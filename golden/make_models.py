#!/usr/bin/env python3
"""Makes the tiny random checkpoints of golden/models and the logits that transformers gives for them.

Each folder is a Hugging Face checkpoint as a user would bring it (config.json, one or two safetensors files), small enough to
commit, plus expected.safetensors:

    tokens  I64  [B, T]      two sequences, each from position 0
    logits  F32  [B, T, V]   transformers, eager attention, weights upcast to f32, computed in f32

A folder with `adapter/` also carries a PEFT LoRA adapter and the logits of the merged model (expected.safetensors in it, same form).

Weights are drawn from numpy's frozen RandomState, so a rerun gives the same bytes. Norm weights are drawn too, never ones: a reader
that forgets one must fail. The f32 logits are compared here with the same model loaded in f64 (transformers keeps its norms and softmax in f32
even then); the difference, printed, is what rounding alone makes of these weights, so a tolerance of 2e-4 leaves an order of magnitude.

Both spellings of the rotary settings are covered: `rope_theta`/`rope_scaling` (transformers 4) and `rope_parameters` (transformers 5).
"""

import json
import os
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SEQUENCES, TOKENS = 2, 24

LLAMA3_SCALING = {
    # The three branches of the formula are all taken at head_dim 16, theta 10000: wavelengths 6.3 | 19.9 | 62.8 … against 8 and 32.
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# name: family, dtype, tied, layers, D, H, G, K, F, V, theta, eps, and what makes it special.
MODELS = {
    "qwen3-gqa-tied": dict(
        family="qwen3", dtype="float32", tied=True, layers=2, width=32, heads=4, kv_heads=2, head_dim=16, ffn=48, vocab=80,
        theta=500000.0, eps=1e-6, adapter=True),
    "qwen3-mha-untied": dict(
        family="qwen3", dtype="float32", tied=False, layers=2, width=32, heads=4, kv_heads=4, head_dim=8, ffn=64, vocab=72,
        theta=10000.0, eps=1e-3, rope_parameters=True),
    "qwen3-bf16": dict(
        family="qwen3", dtype="bfloat16", tied=True, layers=3, width=48, heads=4, kv_heads=1, head_dim=16, ffn=56, vocab=96,
        theta=500000.0, eps=1e-6),
    "llama-gqa-tied": dict(
        family="llama", dtype="bfloat16", tied=True, layers=3, width=48, heads=6, kv_heads=2, head_dim=8, ffn=72, vocab=96,
        theta=500000.0, eps=1e-5, no_head_dim=True),
    "llama-mha-untied": dict(
        family="llama", dtype="float16", tied=False, layers=2, width=48, heads=3, kv_heads=3, head_dim=16, ffn=64, vocab=64,
        theta=10000.0, eps=1e-3, rope_parameters=True),
    "llama-gqa-sharded": dict(
        family="llama", dtype="float32", tied=False, layers=2, width=40, heads=4, kv_heads=2, head_dim=8, ffn=56, vocab=65,
        theta=10000.0, eps=1e-5, shards=2),
    "llama-rope-scaling": dict(
        family="llama", dtype="float32", tied=True, layers=2, width=32, heads=4, kv_heads=2, head_dim=16, ffn=48, vocab=64,
        theta=10000.0, eps=1e-5, scaling=LLAMA3_SCALING),
    # Windows, by both spellings: kinds that are listed, and the number of first layers that see everything.
    "qwen3-sliding": dict(
        family="qwen3", dtype="float32", tied=True, layers=3, width=16, heads=4, kv_heads=2, head_dim=8, ffn=24, vocab=64,
        theta=10000.0, eps=1e-6, window=5, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "qwen3-sliding-last": dict(
        family="qwen3", dtype="float32", tied=True, layers=3, width=16, heads=2, kv_heads=1, head_dim=8, ffn=24, vocab=64,
        theta=10000.0, eps=1e-6, window=3, full_layers=1),
}


def config_json(m):
    """config.json as the family's published checkpoints spell it."""
    config = {
        "architectures": ["Qwen3ForCausalLM" if m["family"] == "qwen3" else "LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": m["head_dim"],
        "hidden_act": "silu",
        "hidden_size": m["width"],
        "initializer_range": 0.02,
        "intermediate_size": m["ffn"],
        "max_position_embeddings": 256,
        "model_type": m["family"],
        "num_attention_heads": m["heads"],
        "num_hidden_layers": m["layers"],
        "num_key_value_heads": m["kv_heads"],
        "rms_norm_eps": m["eps"],
        "tie_word_embeddings": m["tied"],
        "use_cache": True,
        "vocab_size": m["vocab"],
    }
    if m.get("no_head_dim"):  # Llama 2 and early Llama 3 files leave it out: hidden_size / heads.
        del config["head_dim"]
    if m["family"] == "llama":
        config |= {"mlp_bias": False, "pretraining_tp": 1}
    else:
        config |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": m["layers"]}
    if m.get("window"):
        config |= {"use_sliding_window": True, "sliding_window": m["window"], "max_window_layers": m.get("full_layers", m["layers"])}
    if m.get("layer_types"):
        config["layer_types"] = m["layer_types"]
    if m.get("rope_parameters"):
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": m["theta"]}
        config["dtype"] = m["dtype"]
    else:
        config["rope_theta"] = m["theta"]
        config["rope_scaling"] = m.get("scaling")
        config["torch_dtype"] = m["dtype"]
    return config


def weights(m, seed):
    """Random tensors under their Hugging Face names, in the checkpoint's dtype."""
    random = np.random.RandomState(seed)
    dtype = DTYPES[m["dtype"]]

    def matrix(rows, cols):  # 1.5/sqrt(fan-in): attention is far from uniform and logits are of order one
        return torch.from_numpy(random.standard_normal((rows, cols)) * 1.5 / cols**0.5).to(dtype)

    def norm(width):  # never ones
        return torch.from_numpy(random.uniform(0.5, 1.5, width)).to(dtype)

    d, q, kv, f = m["width"], m["heads"] * m["head_dim"], m["kv_heads"] * m["head_dim"], m["ffn"]
    tensors = {"model.embed_tokens.weight": matrix(m["vocab"], d)}
    for layer in range(m["layers"]):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = norm(d)
        tensors[at + "self_attn.q_proj.weight"] = matrix(q, d)
        tensors[at + "self_attn.k_proj.weight"] = matrix(kv, d)
        tensors[at + "self_attn.v_proj.weight"] = matrix(kv, d)
        tensors[at + "self_attn.o_proj.weight"] = matrix(d, q)
        if m["family"] == "qwen3":
            tensors[at + "self_attn.q_norm.weight"] = norm(m["head_dim"])
            tensors[at + "self_attn.k_norm.weight"] = norm(m["head_dim"])
        tensors[at + "post_attention_layernorm.weight"] = norm(d)
        tensors[at + "mlp.gate_proj.weight"] = matrix(f, d)
        tensors[at + "mlp.up_proj.weight"] = matrix(f, d)
        tensors[at + "mlp.down_proj.weight"] = matrix(d, f)
    tensors["model.norm.weight"] = norm(d)
    if not m["tied"]:
        tensors["lm_head.weight"] = matrix(m["vocab"], d)
    return tensors


def write_checkpoint(folder, m, tensors):
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config_json(m), file, indent=2)
        file.write("\n")
    shards = m.get("shards", 1)
    if shards == 1:
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return
    names = list(tensors)
    size = -(-len(names) // shards)
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())}, "weight_map": {}}
    for shard in range(shards):
        part = names[shard * size : (shard + 1) * size]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in part}, os.path.join(folder, file), metadata={"format": "pt"})
        index["weight_map"] |= {name: file for name in part}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
        json.dump(index, file, indent=2)
        file.write("\n")


def logits(folder, tokens, dtype, edit=None):
    """Logits of the checkpoint in `folder` by transformers, weights upcast to `dtype` and computed in it. `edit` changes the model first."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), f"{folder}: {info}"
    model.eval()
    with torch.no_grad():
        if edit:
            edit(model)
        out = model(tokens, use_cache=False).logits
    assert out.dtype == dtype
    return out


def write_expected(folder, model_folder, m, seed, edit=None):
    """Writes expected.safetensors, returns (largest |logit|, largest |f32 - f64|)."""
    tokens = torch.from_numpy(np.random.RandomState(seed).randint(0, m["vocab"], (SEQUENCES, TOKENS)))
    single = logits(model_folder, tokens, torch.float32, edit)
    double = logits(model_folder, tokens, torch.float64, edit)
    save_file({"tokens": tokens, "logits": single.contiguous()}, os.path.join(folder, "expected.safetensors"))
    return single.abs().max().item(), (single.double() - double).abs().max().item()


LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def make_adapter(folder, m, base, seed):
    """A LoRA adapter on all seven linears as PEFT writes it: y = W x + (alpha / r) B A x, A [r, in], B [out, r] (arXiv 2106.09685)."""
    rank, alpha = 4, 8
    random = np.random.RandomState(seed)
    os.makedirs(folder)
    tensors = {}
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        if not any(module.endswith(linear) for linear in LINEARS):
            continue
        rows, cols = weight.shape
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.from_numpy(random.standard_normal((rank, cols)) / cols**0.5).float()
        tensors[f"{key}.lora_B.weight"] = torch.from_numpy(random.standard_normal((rows, rank)) * 0.2).float()
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": "..",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(linear.split(".")[1] for linear in LINEARS),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")

    def merge(model):
        parameters = dict(model.named_parameters())
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
                a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
                parameters[name] += (alpha / rank * (b.double() @ a.double())).to(parameters[name].dtype)

    return merge


def open_to_all(folder):
    """safetensors writes files only their owner may read."""
    for at, _, files in os.walk(folder):
        for file in files:
            os.chmod(os.path.join(at, file), 0o644)


def size_of(folder):
    return sum(os.path.getsize(os.path.join(at, f)) for at, _, files in os.walk(folder) for f in files)


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", file=sys.stderr)
    print(f"{'folder':32} {'dtype':9} {'bytes':>7} {'max |logit|':>11} {'|f32 - f64|':>11}")
    for number, (name, m) in enumerate(MODELS.items()):
        folder = os.path.join(HERE, "models", name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        tensors = weights(m, seed=1000 + number)
        write_checkpoint(folder, m, tensors)
        largest, error = write_expected(folder, folder, m, seed=2000 + number)
        print(f"{name:32} {m['dtype']:9} {size_of(folder):7} {largest:11.3f} {error:11.1e}")
        if m.get("adapter"):
            adapter = os.path.join(folder, "adapter")
            merge = make_adapter(adapter, m, tensors, seed=3000 + number)
            largest, error = write_expected(adapter, folder, m, seed=2000 + number, edit=merge)
            print(f"{name + '/adapter':32} {'float32':9} {size_of(adapter):7} {largest:11.3f} {error:11.1e}")
        open_to_all(folder)


if __name__ == "__main__":
    main()
