#!/usr/bin/env python3
"""Makes golden/ops.safetensors: what each coarse op must give, forward and backward, from torch autograd in float64.

Inputs are drawn, rounded to f32, computed in f64 from those f32 values, and stored in f32; so an f32 kernel sees exactly the inputs the
answer belongs to. Gradients are of the scalar sum(out * d_out). Tensor names are `op.tensor`. F32 unless said otherwise. Lengths are
odd on purpose: a kernel's tails are part of the op.

Letters: N tokens, D width, H heads, G kv-heads, K head width, F ffn, V vocab.

| tensor | shape | meaning |
|---|---|---|
| attention.qkv | [50, (4+2·2)·16] | columns q heads, k heads, v heads; H=4, G=2, K=16; used as they are (no norm, no rotation) |
| attention.segments | U32 [2, 2] | (start, len) of the packed sequences: (0, 33), (33, 17); causal inside each, blind between |
| attention.out | [50, 4·16] | softmax(q kᵀ / sqrt(K)) v; query head h reads kv-head h / (H/G) |
| attention.lse | [50, 4] | natural logarithm of the sum of exp of the scaled scores |
| attention.d_out, .d_qkv | [50, 64], [50, 128] | gradient in, gradient out |
| rms_norm.x | [7, 48] | |
| rms_norm.weight | [48] | |
| rms_norm.eps | [1] | 1e-3, large enough that forgetting it shows |
| rms_norm.out, .inv_rms | [7, 48], [7] | x · inv_rms · weight; inv_rms = 1/sqrt(mean(x²) + eps)  (arXiv 1910.07467) |
| rms_norm.d_out, .d_x, .d_weight | [7, 48], [7, 48], [48] | |
| rope.cos, .sin | [128, 8] | table for positions 0..128, K=16, theta 10000: angle = position · theta^(-2i/K)  (arXiv 2104.09864) |
| qk_norm_rope.qkv | [9, (4+2·2)·16] | H=4, G=2, K=16 |
| qk_norm_rope.positions | U32 [9] | two sequences and one far position |
| qk_norm_rope.q_norm, .k_norm | [16] | weights of the per-head norms |
| qk_norm_rope.eps | [1] | 1e-3 |
| qk_norm_rope.out | [9, 128] | q and k heads normed over K, then rotated by halves: (a, b) -> (a cos - b sin, b cos + a sin), a = first K/2; v copied |
| qk_norm_rope.inv_rms | [9, 4+2] | of the q heads, then the k heads |
| qk_norm_rope.d_out, .d_qkv, .d_q_norm, .d_k_norm | | |
| rope.out, .d_qkv | [9, 128] | the same qkv, positions and d_out without norms |
| swiglu.gate_up | [5, 2·24] | columns gate, up |
| swiglu.out | [5, 24] | silu(gate) · up  (arXiv 2002.05202) |
| swiglu.d_out, .d_gate_up | [5, 24], [5, 48] | |
| cross_entropy.hidden, .table | [11, 16], [29, 16] | logits = hidden tableᵀ |
| cross_entropy.targets | U32 [11] | 4294967295 (u32::MAX) = ignore: loss 0, no gradient |
| cross_entropy.weights | [11] | dL/dloss of each token |
| cross_entropy.losses | [11] | -ln softmax(logits)[target], nats |
| cross_entropy.d_hidden, .d_table | [11, 16], [29, 16] | of sum(weights · losses) |
| adamw.hyper | [5] | lr, beta1, beta2, eps, weight_decay |
| adamw.weight | [37] | before the first step; moments start at zero |
| adamw.grads | [3, 37] | |
| adamw.weights, .m, .v | [3, 37] | after each of three steps of torch.optim.AdamW (arXiv 1711.05101: decay is lr · weight_decay · weight) |
"""

import os
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
IGNORE = 2**32 - 1


class Draw:
    """Random inputs from numpy's frozen generator, f32 values held in f64."""

    def __init__(self, seed):
        self.random = np.random.RandomState(seed)

    def normal(self, *shape, scale=1.0):
        return torch.from_numpy((self.random.standard_normal(shape) * scale).astype(np.float32).astype(np.float64))

    def uniform(self, low, high, *shape):
        return torch.from_numpy(self.random.uniform(low, high, shape).astype(np.float32).astype(np.float64))


def gradients(out, d_out, *inputs):
    return torch.autograd.grad((out * d_out).sum(), inputs)


def attention(draw):
    heads, kv_heads, width, segments = 4, 2, 16, [(0, 33), (33, 17)]
    tokens = 50
    qkv = draw.normal(tokens, (heads + 2 * kv_heads) * width, scale=1.5).requires_grad_()
    q, k, v = qkv.split([heads * width, kv_heads * width, kv_heads * width], dim=1)
    outs, lses = [], []
    for start, length in segments:
        rows = slice(start, start + length)
        # [H, T, K]; each kv-head serves H/G query heads in a row
        qs = q[rows].reshape(length, heads, width).transpose(0, 1)
        ks = k[rows].reshape(length, kv_heads, width).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
        vs = v[rows].reshape(length, kv_heads, width).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
        scores = qs @ ks.transpose(1, 2) / width**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        outs.append((scores.softmax(-1) @ vs).transpose(0, 1).reshape(length, heads * width))
        lses.append(scores.logsumexp(-1).transpose(0, 1))
    out, lse = torch.cat(outs), torch.cat(lses)
    d_out = draw.normal(tokens, heads * width)
    (d_qkv,) = gradients(out, d_out, qkv)
    return dict(qkv=qkv, segments=np.array(segments, np.uint32), out=out, lse=lse, d_out=d_out, d_qkv=d_qkv)


def normed(x, weight, eps):
    inv_rms = (x.square().mean(-1) + eps).rsqrt()
    return x * inv_rms[..., None] * weight, inv_rms


def rms_norm(draw):
    x, weight = draw.normal(7, 48).requires_grad_(), draw.uniform(0.5, 1.5, 48).requires_grad_()
    eps = float(np.float32(1e-3))
    out, inv_rms = normed(x, weight, eps)
    d_out = draw.normal(7, 48)
    d_x, d_weight = gradients(out, d_out, x, weight)
    return dict(x=x, weight=weight, eps=np.array([eps]), out=out, inv_rms=inv_rms, d_out=d_out, d_x=d_x, d_weight=d_weight)


def rope_table(positions, width, theta):
    inverse = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angles = np.arange(positions, dtype=np.float64)[:, None] * inverse
    return np.cos(angles), np.sin(angles)


def rotated(x, cos, sin):  # x [N, heads, K]; cos, sin [N, 1, K/2]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def ropes(draw):
    heads, kv_heads, width = 4, 2, 16
    cos, sin = rope_table(128, width, 10000.0)
    positions = np.array([0, 1, 2, 3, 4, 0, 1, 2, 100], np.uint32)
    tokens, eps = len(positions), float(np.float32(1e-3))
    at = (torch.from_numpy(cos[positions])[:, None], torch.from_numpy(sin[positions])[:, None])
    qkv = draw.normal(tokens, (heads + 2 * kv_heads) * width).requires_grad_()
    q_norm, k_norm = draw.uniform(0.5, 1.5, width).requires_grad_(), draw.uniform(0.5, 1.5, width).requires_grad_()
    d_out = draw.normal(tokens, (heads + 2 * kv_heads) * width)
    q, k, v = qkv.reshape(tokens, -1, width).split([heads, kv_heads, kv_heads], dim=1)

    qn, q_inv = normed(q, q_norm, eps)
    kn, k_inv = normed(k, k_norm, eps)
    out = torch.cat([rotated(qn, *at), rotated(kn, *at), v], dim=1).reshape(tokens, -1)
    d_qkv, d_q_norm, d_k_norm = gradients(out, d_out, qkv, q_norm, k_norm)
    with_norm = dict(
        qkv=qkv, positions=positions, q_norm=q_norm, k_norm=k_norm, eps=np.array([eps]), out=out,
        inv_rms=torch.cat([q_inv, k_inv], dim=1), d_out=d_out, d_qkv=d_qkv, d_q_norm=d_q_norm, d_k_norm=d_k_norm)

    plain = torch.cat([rotated(q, *at), rotated(k, *at), v], dim=1).reshape(tokens, -1)
    (d_plain,) = gradients(plain, d_out, qkv)
    return with_norm, dict(cos=cos, sin=sin, out=plain, d_qkv=d_plain)


def swiglu(draw):
    gate_up = draw.normal(5, 48, scale=2.0).requires_grad_()
    gate, up = gate_up.chunk(2, dim=1)
    out = torch.nn.functional.silu(gate) * up
    d_out = draw.normal(5, 24)
    (d_gate_up,) = gradients(out, d_out, gate_up)
    return dict(gate_up=gate_up, out=out, d_out=d_out, d_gate_up=d_gate_up)


def cross_entropy(draw):
    hidden, table = draw.normal(11, 16).requires_grad_(), draw.normal(29, 16).requires_grad_()
    targets = draw.random.randint(0, 29, 11).astype(np.uint32)
    targets[[3, 10]] = IGNORE
    weights = draw.uniform(0.0, 0.2, 11)
    kept = torch.from_numpy(targets != IGNORE)
    picked = torch.from_numpy(np.where(targets == IGNORE, 0, targets).astype(np.int64))
    log_probs = (hidden @ table.T).log_softmax(-1)
    losses = torch.where(kept, -log_probs.gather(1, picked[:, None])[:, 0], 0.0)
    d_hidden, d_table = gradients(losses, weights, hidden, table)
    return dict(hidden=hidden, table=table, targets=targets, weights=weights, losses=losses, d_hidden=d_hidden, d_table=d_table)


def adamw(draw):
    hyper = np.array([1e-2, 0.9, 0.95, 1e-8, 0.1], np.float32).astype(np.float64)
    lr, beta1, beta2, eps, decay = hyper.tolist()
    start, grads = draw.normal(37), draw.normal(3, 37, scale=0.1)
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    weights, m, v = [], [], []
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        state = optimizer.state[weight]
        weights.append(weight.detach().clone()), m.append(state["exp_avg"].clone()), v.append(state["exp_avg_sq"].clone())
    return dict(hyper=hyper, weight=start, grads=grads, weights=torch.stack(weights), m=torch.stack(m), v=torch.stack(v))


def stored(value):
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else value
    return np.ascontiguousarray(value if value.dtype == np.uint32 else value.astype(np.float32))


def main():
    torch.set_num_threads(1)
    qk_norm_rope, rope = ropes(Draw(3))
    ops = {
        "attention": attention(Draw(1)),
        "rms_norm": rms_norm(Draw(2)),
        "qk_norm_rope": qk_norm_rope,
        "rope": rope,
        "swiglu": swiglu(Draw(4)),
        "cross_entropy": cross_entropy(Draw(5)),
        "adamw": adamw(Draw(6)),
    }
    tensors = {f"{op}.{name}": stored(value) for op, values in ops.items() for name, value in values.items()}
    path = os.path.join(HERE, "ops.safetensors")
    save_file(tensors, path)
    os.chmod(path, 0o644)
    print(f"torch {torch.__version__}, numpy {np.__version__}", file=sys.stderr)
    for name, tensor in tensors.items():
        print(f"{name:28} {str(tensor.dtype):8} {list(tensor.shape)}")
    print(f"{path}: {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
