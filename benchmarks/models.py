"""The training step, side by side with transformers and a plain reference.

    python benchmarks/models.py [--rounds 5] [--only tiny gpt2]

nanoGPT itself is on no package index, so a reference stands in for it that
is written as plainly as one writes a GPT-2 in PyTorch: fused attention,
F.gelu, all logits, F.cross_entropy, AdamW with torch's defaults. It is not
nanoGPT; read its row as "the plain way". All candidates start from random
weights, see the same batches, clip to norm 1 and use no dropout.

Speed: candidates take turns within one process, one step each per round;
the median over the rounds, in seconds of CPU (all threads) and of wall.
Memory: each candidate makes two steps in a fresh process; the peak resident
memory, and the same less what was resident before the model was built.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import psutil
import torch
import torch.nn.functional as F
from torch import nn

RESULTS = Path(__file__).parent / "results" / "models.md"
SIZES = {
    "tiny": dict(V=8192, D=256, L=6, H=4, T=256, B=8, threads=1),
    "gpt2": dict(V=50304, D=768, L=12, H=12, T=256, B=2, threads=2),
}


class PlainBlock(nn.Module):
    """A GPT-2 block as one writes it without a second thought."""

    def __init__(self, D, H):
        super().__init__()
        self.H = H
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.H, -1).transpose(1, 2)
                   for y in self.qkv(self.ln_1(x)).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Plain(nn.Module):
    """Embeddings, blocks, norm, and all the logits."""

    def __init__(self, V, D, L, H, T):
        super().__init__()
        self.tokens, self.places = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.ModuleList(PlainBlock(D, H) for _ in range(L))
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.tokens.weight
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        x = self.tokens(ids) + self.places.weight[:ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def plain_step(size):
    """A step of the plain reference."""
    model = Plain(*(size[k] for k in "VDLHT"))

    def loss_of(batch):
        logits = model(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    return torch_step(model, loss_of)


def library_step(size):
    """A step of transformers' GPT2LMHeadModel."""
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=size["V"], n_positions=size["T"] + 1, n_embd=size["D"],
        n_layer=size["L"], n_head=size["H"], resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0))
    model.train()
    # the library shifts the labels itself: it reads one token more
    return torch_step(model, lambda batch: model(
        batch, labels=batch, use_cache=False).loss)


def torch_step(model, loss_of):
    """The usual loop around a loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def our_step(size):
    """A step of `lmcourse.training.fit`, by its own pieces."""
    from lmcourse.layers.transformer import Transformer, TransformerConfig
    from lmcourse.training import TrainingConfig, _Trainer

    model = Transformer(TransformerConfig(
        size["V"], size["T"], size["D"], size["L"], size["H"], 4 * size["D"],
        feed_forward="gelu_tanh"))
    trainer = _Trainer(model, TrainingConfig(steps=1000), "causal")

    def step(batch):
        loss = trainer.gradients(batch)
        trainer.update(1e-4)
        return loss

    return step


CANDIDATES = {"lmcourse": our_step, "transformers": library_step,
              "plain PyTorch": plain_step}


def some_batch(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(size["V"], (size["B"], size["T"] + 1),
                         generator=generator)


def speed(size, rounds):
    """Median seconds (CPU, wall) of each candidate, taking turns."""
    torch.set_num_threads(size["threads"])
    torch.manual_seed(0)
    steps = {name: make(size) for name, make in CANDIDATES.items()}
    times = {name: [] for name in steps}
    for number in range(-1, rounds):  # the first one warms up
        batch = some_batch(size, number + 1)
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step(batch)
            if number >= 0:
                times[name].append((time.process_time() - cpu,
                                    time.perf_counter() - wall))
    return {name: [statistics.median(x) for x in zip(*t, strict=True)]
            for name, t in times.items()}


def memory_here(name, size):
    """Peak of this process in MB after two steps: whole, and less before."""
    import transformers  # noqa: F401  (so that all start from the same)

    torch.set_num_threads(size["threads"])
    before = psutil.Process().memory_info().rss / 1e6
    step = CANDIDATES[name](size)
    for number in range(2):
        step(some_batch(size, number))
    # getrusage's maximum would be the parent's, which comes along
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6
    return peak, peak - before


def memory(name, key):
    """`memory_here`, in a fresh process."""
    out = subprocess.run(
        [sys.executable, __file__, "--memory", name, key], check=True,
        capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def table(key, rounds):
    """The lines of one size's table."""
    size = SIZES[key]
    times = speed(size, rounds)
    peaks = {name: memory(name, key) for name in CANDIDATES}
    ours = times["lmcourse"][0]
    lines = [f"## {key}: " + ", ".join(f"{k} {v}" for k, v in size.items()),
             "", "| | CPU s/step | wall s/step | CPU, relative to ours | "
             "peak MB | peak MB above the start | peak, relative to ours |",
             "|---|---|---|---|---|---|---|"]
    for name, (cpu, wall) in times.items():
        whole, above = peaks[name]
        lines.append(
            f"| {name} | {cpu:.3f} | {wall:.3f} | {cpu / ours:.2f} | "
            f"{whole:.0f} | {above:.0f} | "
            f"{whole / peaks['lmcourse'][0]:.2f} |")
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "SIZE"))
    arguments = parser.parse_args()
    if arguments.memory:
        name, key = arguments.memory
        print(json.dumps(memory_here(name, SIZES[key])))
        return
    import transformers

    processor = next((line.split(":")[1].strip() for line in
                      Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), platform.machine())
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [
        "# The training step, side by side", "",
        "Written by `benchmarks/models.py`; its docstring says how. "
        "nanoGPT was not available; \"plain PyTorch\" is a stand-in written "
        "for this benchmark. No GPU was available.", "",
        f"{processor}, {os.cpu_count()} cores (load at the start "
        f"{os.getloadavg()[0]:.1f}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {arguments.rounds} rounds.", ""]
    for key in arguments.only:
        lines += table(key, arguments.rounds)
        RESULTS.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
