"""The training step, side by side with transformers and nanoGPT's way.

    python benchmarks/models.py [--part tiny] [--part mlm] [--rounds 5]

Decoders (the parts tiny and gpt2): two pairs, each of two programs for one
and the same function. GPT-2 as it was
published (GELU by a tanh): lmcourse and transformers' GPT2LMHeadModel. GPT-2
as nanoGPT has it (exact GELU): lmcourse with that activation, and a stand-in
for nanoGPT, which is on no package index. The stand-in was written for this
script; it makes the same operations: fused attention, dropout modules at
zero, tied weights, all logits, F.cross_entropy, two groups of parameters for
AdamW. All get torch's fused AdamW (nanoGPT asks for it on a GPU only; the
library's Trainer uses it by default), start from random weights, see the same
batches and clip to norm 1.

Encoders (mlm): lmcourse's BERT with its head for gaps, and transformers'
BertForMaskedLM, on the same masked batches. Besides, how many tokens a second
one core can mask, and which part of a pretraining of the zoo's BERT is spent
on waiting for batches.

Each candidate lives in a process of its own, since what one leaves in the
allocator would make the next one faster or slower. Speed: they take turns, one
step each per round; medians over the rounds, in seconds of CPU (all threads)
and of wall, and the median of the ratios within a round. Memory: the peak
resident memory of two steps above what was there before the model was built,
at the batch of the speed runs and at a larger one, where what is kept for the
backward pass counts for more.

With --part, only this part of the results is measured and replaced.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # a waiting thread is no work
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve()
               != Path(__file__).resolve().parent]  # it has a tokenizers.py

import psutil  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from torch import nn  # noqa: E402

from lmcourse.layers.transformer import (  # noqa: E402
    build_transformer,
    TransformerConfig,
)
from lmcourse.models.bert import (  # noqa: E402
    BERT,
    BertConfig,
    build_bert,
    masked_loss,
    prepare_bert,
)
from lmcourse.objectives import Masking, mask_tokens  # noqa: E402
from lmcourse.training import TrainingConfig, _Trainer  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SIZES = {
    "tiny": dict(V=8192, D=256, L=6, H=4, T=256, B=8, threads=1),
    "mlm": dict(V=8192, D=256, L=6, H=4, T=256, B=8, threads=1),
    "gpt2": dict(V=50304, D=768, L=12, H=12, T=256, B=2, threads=2),
}
LARGER_BATCH = {"tiny": 16, "mlm": 16, "gpt2": 8}
MASKING = Masking(8192, 4, (0, 1, 2, 3, 4))


class NanoBlock(nn.Module):
    """A block of the stand-in."""

    def __init__(self, D, H):
        super().__init__()
        self.H = H
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.gelu, self.drop = nn.GELU(), nn.Dropout(0.0)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.H, D // self.H).transpose(1, 2)
                   for y in self.qkv(self.ln_1(x)).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, D)
        x = x + self.drop(self.out(y))
        return x + self.drop(self.down(self.gelu(self.up(self.ln_2(x)))))


class Nano(nn.Module):
    """Embeddings, blocks, a norm, all the logits, and their loss."""

    def __init__(self, V, D, L, H, T):
        super().__init__()
        self.tokens, self.places = nn.Embedding(V, D), nn.Embedding(T, D)
        self.drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(NanoBlock(D, H) for _ in range(L))
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.tokens.weight
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, labels):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]),
                               labels.reshape(-1), ignore_index=-1)


def nano_step(size):
    """A step of the stand-in for nanoGPT."""
    model = Nano(*(size[k] for k in "VDLHT"))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2],
         "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2],
         "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95),
                                  fused=True)
    return usual_step(model, optimizer,
                      lambda batch: model(batch[:, :-1], batch[:, 1:]))


def library_step(size):
    """A step of transformers' GPT2LMHeadModel."""
    transformers.logging.set_verbosity_error()
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=size["V"], n_positions=size["T"] + 1, n_embd=size["D"],
        n_layer=size["L"], n_head=size["H"], resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    # the library shifts the labels itself: it reads one token more
    return usual_step(model.train(), optimizer, lambda batch: model(
        batch, labels=batch, use_cache=False).loss)


def usual_step(model, optimizer, loss_of):
    """The usual loop around a loss."""
    def step(batch):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def our_step(size, activation="gelu_tanh"):
    """A step of `lmcourse.training.fit`, by its own pieces."""
    return trained_step(build_transformer(TransformerConfig(
        size["V"], size["T"], size["D"], size["L"], size["H"], 4 * size["D"],
        feed_forward=activation)))


def trained_step(model, **options):
    """A step of our loop around a model."""
    trainer = _Trainer(model, TrainingConfig(steps=1000), **options)

    def step(batch):
        loss = trainer.gradients(batch, 0).loss()
        trainer.update(1e-4, loss=loss)
        return loss

    return step


def our_masked_step(size):
    """A step of our BERT."""
    return trained_step(build_bert(BertConfig(
        size["V"], size["T"], size["D"], size["L"], size["H"],
        4 * size["D"])), objective=masked_loss)


def library_masked_step(size):
    """A step of transformers' BertForMaskedLM."""
    transformers.logging.set_verbosity_error()
    model = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=size["V"], hidden_size=size["D"],
        max_position_embeddings=size["T"], num_hidden_layers=size["L"],
        num_attention_heads=size["H"], intermediate_size=4 * size["D"],
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return usual_step(model.train(), optimizer,
                      lambda batch: model(**batch).loss)


DECODERS = {
    "lmcourse": our_step,
    "transformers": library_step,
    "lmcourse, exact GELU": lambda size: our_step(size, "gelu"),
    "nanoGPT's way": nano_step,
}
ENCODERS = {"lmcourse": our_masked_step, "transformers": library_masked_step}
CANDIDATES = {"tiny": DECODERS, "mlm": ENCODERS, "gpt2": DECODERS}
RIVALS = {"transformers": "lmcourse", "nanoGPT's way": "lmcourse, exact GELU"}


def some_batch(key, size, seed):
    generator = torch.Generator().manual_seed(seed)
    if key != "mlm":
        return torch.randint(size["V"], (size["B"], size["T"] + 1),
                             generator=generator)
    ids = torch.randint(5, size["V"], (size["B"], size["T"]),
                        generator=generator)
    return mask_tokens(ids, masking=MASKING, generator=generator)


def peak():
    """The most memory that this process ever had, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6


def worker(pipe, key, name, size):
    """Make a step for each number that comes; send what it took."""
    torch.set_num_threads(size["threads"])
    torch.manual_seed(0)
    before = psutil.Process().memory_info().rss / 1e6
    step = CANDIDATES[key][name](size)
    for number in iter(pipe.recv, None):
        batch = some_batch(key, size, number)
        cpu, wall = time.process_time(), time.perf_counter()
        step(batch)
        pipe.send((time.process_time() - cpu, time.perf_counter() - wall,
                   peak() - before))


class Process:
    """A candidate in a process of its own."""

    def __init__(self, key, name, size):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(
            target=worker, args=(theirs, key, name, size), daemon=True)
        self.process.start()
        theirs.close()  # so that a crash over there ends the wait here

    def step(self, number):
        self.pipe.send(number)
        return self.pipe.recv()

    def stop(self):
        self.pipe.send(None)
        self.process.join()


def speed(key, size, rounds):
    """Of each candidate: seconds (CPU, wall) of each round, and its peak."""
    processes = {name: Process(key, name, size) for name in CANDIDATES[key]}
    peaks = {}
    for number in range(2):  # to warm up
        for name, process in processes.items():
            peaks[name] = process.step(number)[2]
    times = {name: [] for name in processes}
    for number in range(2, 2 + rounds):
        for name, process in processes.items():
            times[name].append(process.step(number)[:2])
    for process in processes.values():
        process.stop()
    return times, peaks


def memory(key, size):
    """The peaks of two steps, one candidate after the other."""
    peaks = {}
    for name in CANDIDATES[key]:
        process = Process(key, name, size)
        process.step(0)
        peaks[name] = process.step(1)[2]
        process.stop()
    return peaks


def measure(key, rounds):
    """All numbers of one size."""
    size, larger = SIZES[key], LARGER_BATCH[key]
    load = os.getloadavg()[0]
    times, peaks = speed(key, size, rounds)
    more = masking_costs(rounds) if key == "mlm" else {}
    return more | {
        "date": datetime.date.today().isoformat(), "load": load,
        "rounds": rounds, "times": times, "peaks": {
            size["B"]: peaks, larger: memory(key, size | {"B": larger})}}


def masking_costs(rounds):
    """M tokens masked a second, and the part of a run that waits for them."""
    torch.set_num_threads(1)
    ids = torch.randint(5, 8192, (2000, 256),
                        generator=torch.Generator().manual_seed(0))
    draws, speeds = torch.Generator().manual_seed(0), []
    for _ in range(rounds):
        start = time.process_time()
        mask_tokens(ids, masking=MASKING, generator=draws)
        speeds.append(ids.numel() / (time.process_time() - start) / 1e6)
    ready = prepare_bert(replace(BERT.presets["small"], n_documents=5000,
                                 steps=60))
    waited = []

    def batches(step):
        start = time.process_time()
        batch = ready.batches(step)
        waited.append(time.process_time() - start)
        return batch

    start = time.process_time()
    ready._replace(batches=batches).run()
    return {"masked": median(speeds),
            "waited": sum(waited) / (time.process_time() - start)}


def table(key, result):
    """The lines of one size's tables."""
    size, times = SIZES[key], result["times"]
    lines = [f"## {key}: " + ", ".join(f"{k} {v}" for k, v in size.items()),
             "", f"{result['date']}, {result['rounds']} rounds, load at the "
             f"start {result['load']:.1f}.", "",
             "| | CPU s/step | wall s/step | CPU, relative to ours |",
             "|---|--:|--:|--:|"]
    for name, runs in times.items():
        cpu, wall = (median(x) for x in zip(*runs, strict=True))
        ratio = ""
        if name in RIVALS:
            both = zip(runs, times[RIVALS[name]], strict=True)
            ratio = f"{median(x[0] / ours[0] for x, ours in both):.2f}"
        lines.append(f"| {name} | {cpu:.3f} | {wall:.3f} | {ratio} |")
    sizes = [*result["peaks"]]
    sizes = [*result["peaks"]]
    lines += ["", "Peak memory, MB above the start:", "", "| | " + " | ".join(
        f"B {B} | ours / theirs" for B in sizes) + " |",
        "|---|" + "--:|--:|" * len(sizes)]
    if key == "mlm":
        lines[2:2] = [f"One core masks {result['masked']:.0f} M tokens a "
                      f"second; a pretraining of the zoo's BERT waits for its "
                      f"batches {result['waited']:.1%} of its time.", ""]
    for name in times:
        line = f"| {name} |"
        for peaks in result["peaks"].values():
            share = (f"{peaks[RIVALS[name]] / peaks[name]:.2f}"
                     if name in RIVALS else "")
            line += f" {peaks[name]:.0f} | {share} |"
        lines.append(line)
    return [*lines, ""]


def machine():
    """One line on where this runs."""
    processor = next((line.split(":")[1].strip() for line in
                      Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), platform.machine())
    return (f"{processor}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}.")


def write(results):
    """`results/models.md` from all parts that were ever measured."""
    lines = ["# The training step, side by side", "",
             "Written by `benchmarks/models.py`; its docstring says how. "
             "nanoGPT itself was not available; \"nanoGPT's way\" is a "
             "stand-in. No GPU was available.", "", results["machine"], ""]
    for key in SIZES:
        if key in results:
            lines += table(key, results[key])
    (RESULTS / "models.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--part", action="append", choices=SIZES)
    arguments = parser.parse_args()
    if arguments.rounds < 5:
        parser.error(f"--rounds {arguments.rounds}: must be at least 5")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "models.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = machine()
    for key in arguments.part or SIZES:
        results[key] = measure(key, arguments.rounds)
        results = json.loads(json.dumps(results))
        path.write_text(json.dumps(results, indent=1) + "\n")
        write(results)


if __name__ == "__main__":
    main()
