#!/usr/bin/env python3
"""One training step in JAX: the model of `russet bench train`, timed step by step; prints one JSON object.

    jax_step.py --shape dim=512,layers=6,... --dtype f32|bf16 [--recompute] [--threads 2] [--steps 8]

XLA takes a thread a core that it may run on, so the process is held to as many cores as there should be threads.
"""
import functools
import json
import os
import resource
import time

from step import arguments

args = arguments(__doc__)
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before XLA counts them

import jax
import jax.numpy as jnp
import numpy as np

S = args.shape
HEAD = S.dim // S.heads
DTYPE = jnp.bfloat16 if args.dtype == "bf16" else jnp.float32


def init(key):
    keys = iter(jax.random.split(key, 8 * S.layers + 1))
    normal = lambda *shape: jax.random.normal(next(keys), shape, jnp.float32) * 0.02
    block = lambda: dict(
        attention_norm=jnp.ones(S.dim), ffn_norm=jnp.ones(S.dim), q_norm=jnp.ones(HEAD), k_norm=jnp.ones(HEAD),
        q=normal(S.dim, S.dim), k=normal(S.dim, S.kv_heads * HEAD), v=normal(S.dim, S.kv_heads * HEAD),
        o=normal(S.dim, S.dim), gate=normal(S.dim, S.ffn), up=normal(S.dim, S.ffn), down=normal(S.ffn, S.dim))
    return dict(table=normal(S.vocab, S.dim), norm=jnp.ones(S.dim), blocks=[block() for _ in range(S.layers)])


def rms_norm(x, weight):
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5) * weight).astype(x.dtype)


angle = np.outer(np.arange(S.seq), 500_000.0 ** -(np.arange(0, HEAD, 2) / HEAD))
COS, SIN = (jnp.array(f(angle), jnp.float32)[None, :, None] for f in (np.cos, np.sin))


def rope(x):
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * COS - b * SIN, b * COS + a * SIN], -1).astype(x.dtype)


def block(p, x):
    w = lambda name: p[name].astype(DTYPE)
    h = rms_norm(x, p["attention_norm"])
    heads = lambda y, n: y.reshape(S.batch, S.seq, n, HEAD)
    q = rope(rms_norm(heads(h @ w("q"), S.heads), p["q_norm"]))
    k = rope(rms_norm(heads(h @ w("k"), S.kv_heads), p["k_norm"]))
    v = heads(h @ w("v"), S.kv_heads)
    q = q.reshape(S.batch, S.seq, S.kv_heads, S.heads // S.kv_heads, HEAD)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k).astype(jnp.float32) * HEAD**-0.5
    scores = jnp.where(jnp.tril(jnp.ones((S.seq, S.seq), bool)), scores, -1e30)
    o = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(scores).astype(DTYPE), v)
    x = x + o.reshape(S.batch, S.seq, S.dim) @ w("o")
    h = rms_norm(x, p["ffn_norm"])
    return x + (jax.nn.silu(h @ w("gate")) * (h @ w("up"))) @ w("down")


def loss(weights, tokens, targets):
    x = weights["table"][tokens].astype(DTYPE)
    for p in weights["blocks"]:
        x = (jax.checkpoint(block) if args.recompute else block)(p, x)
    logits = (rms_norm(x, weights["norm"]) @ weights["table"].T.astype(DTYPE)).astype(jnp.float32)
    return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]).mean()


@functools.partial(jax.jit, donate_argnums=(0, 1, 2))
def step(weights, m, v, t, tokens, targets):
    value, gradient = jax.value_and_grad(loss)(weights, tokens, targets)
    each = jax.tree.map
    norm = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(gradient)))
    gradient = each(lambda g: g * jnp.minimum(1.0, 1.0 / norm), gradient)
    m = each(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
    v = each(lambda v, g: 0.95 * v + 0.05 * g * g, v, gradient)
    adamw = lambda w, m, v: w * (1 - 3e-5) - 3e-4 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.95**t)) + 1e-8)
    return each(adamw, weights, m, v), m, v, value


weights = init(jax.random.key(0))
m, v = (jax.tree.map(jnp.zeros_like, weights) for _ in range(2))
random = np.random.default_rng(0)
tokens, targets = (jnp.array(random.integers(0, S.vocab, (S.batch, S.seq))) for _ in range(2))
seconds, cpu = [], []
for t in range(args.steps + 2):
    wall, spent = time.perf_counter(), time.process_time()
    weights, m, v, value = step(weights, m, v, t + 1.0, tokens, targets)
    value.block_until_ready()
    seconds.append(time.perf_counter() - wall)
    cpu.append(time.process_time() - spent)
print(json.dumps({
    "engine": f"JAX {jax.__version__}, jit{', recompute' if args.recompute else ''}",
    "dtype": args.dtype,
    "seconds": seconds[2:],
    "cpu_seconds": cpu[2:],
    "tokens": S.batch * S.seq,
    "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "loss": float(value),
}))
