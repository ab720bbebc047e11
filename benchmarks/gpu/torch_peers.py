# SPDX-License-Identifier: Apache-2.0
"""What the card can do, and what PyTorch does with it: JSON, one object a line.

copy and matmul are the ceilings that docs/benchmarks.md holds our figures against; layer, sdpa and decode
are PyTorch's own products, attention and decode step (replayed as a CUDA graph) of the Llama-3-8B shape.
"""

import argparse
import json
import sys

import torch
import torch.nn.functional as F

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 4096, 14336, 32, 32, 8, 128, 128256


def median_ms(run, rounds=20, warm_up=3):
    """Median time of a call, by events, after warming up."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def tell(name, **values):
    print(json.dumps({"part": name, **values}), flush=True)


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def copy():
    source = torch.randint(0, 255, (4 << 30,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source))
    tell("copy", gb_s=2 * source.numel() / ms / 1e6)


def matmul():
    for n in (4096, 8192):
        a, b = random(n, n), random(n, n)
        ms = median_ms(lambda: a @ b)
        tell("matmul", n=n, tflop_s=2 * n**3 / ms / 1e9)


def layer():
    """The four matrices of a layer, which L2 does not hold."""
    shapes = (((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN), (HIDDEN, HEADS * HEAD_DIM),
              (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
    weights = [random(*shape) for _ in range(4) for shape in shapes]
    for rows in (1, 16, 64, 512, 2048):
        inputs = {columns: random(rows, columns) for _, columns in shapes}
        ms = median_ms(lambda: [F.linear(inputs[w.shape[1]], w) for w in weights]) / 4
        tell("layer", rows=rows, us=ms * 1e3)


def sdpa():
    for tokens in (2048, 8192):
        q, k, v = (random(1, HEADS, tokens, HEAD_DIM) for _ in range(3))
        ms = median_ms(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        tell("sdpa_prefill", tokens=tokens, tflop_s=2 * HEADS * HEAD_DIM * tokens**2 / ms / 1e9)
    for batch, tokens in ((64, 1024), (64, 8192)):
        q = random(batch, HEADS, 1, HEAD_DIM)
        k, v = (random(batch, KV_HEADS, tokens, HEAD_DIM) for _ in range(2))
        ms = median_ms(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), rounds=5)
        tell("sdpa_decode", batch=batch, tokens=tokens,
             gb_s=2 * 2 * batch * KV_HEADS * tokens * HEAD_DIM / ms / 1e6)


class Decoder:
    """A plain decode step with a dense cache of `tokens` tokens a sequence."""

    def __init__(self, batch, tokens):
        self.layers = [
            {
                "qkv": random((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN) * 0.02,
                "o": random(HIDDEN, HEADS * HEAD_DIM) * 0.02,
                "gate_up": random(2 * INTERMEDIATE, HIDDEN) * 0.02,
                "down": random(HIDDEN, INTERMEDIATE) * 0.02,
                "k": random(batch, KV_HEADS, tokens, HEAD_DIM),
                "v": random(batch, KV_HEADS, tokens, HEAD_DIM),
            }
            for _ in range(LAYERS)
        ]
        self.output = random(VOCAB, HIDDEN) * 0.02
        self.norm = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
        self.x = random(batch, HIDDEN)
        self.batch = batch
        self.tokens = tokens

    def bytes(self):
        weights = sum(t.numel() for layer in self.layers for t in layer.values())
        return 2 * (weights + self.output.numel())

    def step(self):
        x = self.x
        at = self.tokens - 1
        for layer in self.layers:
            h = F.rms_norm(x, (HIDDEN,), self.norm)
            qkv = F.linear(h, layer["qkv"]).view(self.batch, -1, HEAD_DIM)
            q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
            layer["k"][:, :, at] = k
            layer["v"][:, :, at] = v
            o = F.scaled_dot_product_attention(q.unsqueeze(2), layer["k"], layer["v"], enable_gqa=True)
            x = x + F.linear(o.reshape(self.batch, -1), layer["o"])
            h = F.rms_norm(x, (HIDDEN,), self.norm)
            gate, up = F.linear(h, layer["gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return F.linear(F.rms_norm(x, (HIDDEN,), self.norm), self.output).argmax(dim=-1)


def decode():
    for batch in (1, 64):
        model = Decoder(batch, 1024)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                model.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model.step()
        ms = median_ms(graph.replay)
        tell("decode", batch=batch, tokens=1024, us=ms * 1e3, gb_s=model.bytes() / ms / 1e6)
        del graph, model
        torch.cuda.empty_cache()


PARTS = {"copy": copy, "matmul": matmul, "layer": layer, "sdpa": sdpa, "decode": decode}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    for part in parser.parse_args().parts:
        with torch.inference_mode():
            PARTS[part]()


main()
