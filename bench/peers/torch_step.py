#!/usr/bin/env python3
"""One training step in PyTorch: the model of `russet bench train`, timed step by step; prints one JSON object.

    torch_step.py --shape dim=512,layers=6,... --dtype f32|bf16 [--compile] [--recompute] [--threads 2] [--steps 8]
"""
import json
import resource
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from step import arguments

args = arguments(__doc__, compiles=True)
S = args.shape
HEAD = S.dim // S.heads
torch.set_num_threads(args.threads)


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, (self.weight.numel(),), self.weight.to(x.dtype), 1e-5)


frequency = 500_000.0 ** -(torch.arange(0, HEAD, 2) / HEAD)
angle = torch.outer(torch.arange(S.seq).float(), frequency)
COS, SIN = angle.cos()[None, None], angle.sin()[None, None]


def rope(x):
    a, b = x.chunk(2, -1)
    cos, sin = COS.to(x.dtype), SIN.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(S.dim), RMSNorm(S.dim)
        self.q_norm, self.k_norm = RMSNorm(HEAD), RMSNorm(HEAD)
        self.q, self.o = linear(S.dim, S.dim), linear(S.dim, S.dim)
        self.k, self.v = (linear(S.dim, S.kv_heads * HEAD) for _ in range(2))
        self.gate, self.up = (linear(S.dim, S.ffn) for _ in range(2))
        self.down = linear(S.ffn, S.dim)

    def forward(self, x):
        h = self.attention_norm(x)
        heads = lambda y, n: y.view(S.batch, S.seq, n, HEAD).transpose(1, 2)
        q, k, v = heads(self.q(h), S.heads), heads(self.k(h), S.kv_heads), heads(self.v(h), S.kv_heads)
        q, k = rope(self.q_norm(q)), rope(self.k_norm(k))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(o.transpose(1, 2).reshape(S.batch, S.seq, S.dim))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(S.vocab, S.dim)
        self.blocks = nn.ModuleList(Block() for _ in range(S.layers))
        self.norm = RMSNorm(S.dim)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.table(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if args.recompute else block(x)
        logits = F.linear(self.norm(x), self.table.weight).float()
        return F.cross_entropy(logits.view(-1, S.vocab), targets.view(-1))


torch.manual_seed(0)
model = Decoder()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
tokens, targets = (torch.randint(0, S.vocab, (S.batch, S.seq)) for _ in range(2))
forward = torch.compile(model) if args.compile else model


def step():
    with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
        loss = forward(tokens, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


for _ in range(2):  # compiles, and fills the optimizer's state
    loss = step()
seconds, cpu = [], []
for _ in range(args.steps):
    wall, spent = time.perf_counter(), time.process_time()
    loss = step()
    seconds.append(time.perf_counter() - wall)
    cpu.append(time.process_time() - spent)
print(json.dumps({
    "engine": f"PyTorch {torch.__version__.split('+')[0]}, {'torch.compile' if args.compile else 'eager'}"
              f"{', recompute' if args.recompute else ''}",
    "dtype": args.dtype,
    "seconds": seconds,
    "cpu_seconds": cpu,
    "tokens": S.batch * S.seq,
    "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "loss": loss,
}))
