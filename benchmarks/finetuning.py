"""Fine-tuning and prompting, side by side with transformers.

    python benchmarks/finetuning.py [--rounds 3]

Fine-tuning: the zoo's BERT with a head for SST-2, 1,000 labeled examples, 300
steps of 32, by `lmcourse.finetuning.finetune`, and the same weights in
transformers' BertForSequenceClassification by its Trainer, on rows that are
encoded already (ours encodes them within the time), padded to the longest of
a batch, no looks at the development set in either, no files, no reports. Both
use fused AdamW, two threads, float32.

Options: four options of some tokens behind a long prompt, 216 tokens for the
world's decoder and 400 for SmolLM2. Together, by `score_options`, which reads
the prompt once; alone, each behind the whole prompt, one after the other and
all four in one batch, without a cache. Encoding is within the time of the
first, and not of the others.

The candidates take turns; medians over the rounds, in seconds of wall, and
the median of the ratios within a round.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve()
               != Path(__file__).resolve().parent]  # it has a tokenizers.py

import torch  # noqa: E402
import transformers  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402

from lmcourse.checkpoints import save_model  # noqa: E402
from lmcourse.finetuning import (  # noqa: E402
    FINETUNING,
    LabeledTask,
    add_head,
    encode_rows,
    finetune,
    world_task,
)
from lmcourse.prompting import score_options  # noqa: E402
from lmcourse.world import documents  # noqa: E402
from lmcourse.zoo import pretrained, smollm, world_model  # noqa: E402

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH = 300, 32


def finetuning_pair():
    """Two functions that fine-tune the same weights on the same rows."""
    model, tokenizer = pretrained("bert", "small")
    rows = world_task("SST-2", n_train=1000).rows("train")
    task = LabeledTask("SST-2", "sequence", ("negative", "positive"),
                       {"train": rows})
    headed = add_head(model, task)
    folder = tempfile.mkdtemp()
    save_model(headed, folder)
    encoded = encode_rows(headed, tokenizer, task, rows).batch
    examples = [{name: x[i][encoded["attention_mask"][i]] if x.ndim == 2
                 else x[i] for name, x in encoded.items()}
                for i in range(len(rows))]

    def collate(some):
        return {name: pad_sequence([row[name].long() for row in some],
                                   batch_first=True)
                if some[0][name].ndim else torch.stack(
                    [row[name] for row in some]) for name in some[0]}

    def theirs():
        peer = transformers.BertForSequenceClassification.from_pretrained(
            folder)
        trainer = transformers.Trainer(
            peer, transformers.TrainingArguments(
                folder, max_steps=STEPS, per_device_train_batch_size=BATCH,
                learning_rate=FINETUNING.learning_rate, warmup_steps=30,
                weight_decay=0.01, lr_scheduler_type="cosine",
                optim="adamw_torch_fused", save_strategy="no",
                logging_strategy="no", report_to=[], disable_tqdm=True,
                use_cpu=True, dataloader_pin_memory=False),
            train_dataset=examples, data_collator=collate)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start

    def ours():
        start = time.perf_counter()
        finetune(model, tokenizer, task, config=FINETUNING, batch_size=BATCH)
        return time.perf_counter() - start

    return {"lmcourse": ours, "transformers Trainer": theirs}


def options_triple(model, tokenizer, length, repeats):
    """Three ways to score four options behind a long prompt."""
    text = " ".join(documents(60))
    prompt = tokenizer.decode(tokenizer.encode(text)[:length])
    options = [" good play", " bad show", " big zoo", " red cups"]
    start = tokenizer.encode(prompt)
    rows = [start + tokenizer.encode(option) for option in options]

    @torch.no_grad()
    def scores(batch):
        n = len(start)
        ids = pad_sequence([torch.tensor(row) for row in batch],
                           batch_first=True)
        log_p = model(ids).log_softmax(dim=-1)
        return [sum(log_p[k, i - 1, row[i]].item()
                    for i in range(n, len(row)))
                for k, row in enumerate(batch)]

    def timed(function):
        def run():
            before = time.perf_counter()
            for _ in range(repeats):
                run.found = function()
            return (time.perf_counter() - before) / repeats
        return run

    ways = {"together": timed(lambda: [*score_options(
                model, tokenizer, prompt, options).values()]),
            "one by one": timed(lambda: [scores([row])[0] for row in rows]),
            "in a batch": timed(lambda: scores(rows))}
    for way in ways.values():
        way()
    for way in ways.values():  # the same scores
        assert max(abs(a - b) for a, b in zip(
            way.found, ways["together"].found, strict=True)) < 1e-2
    return ways


def measure(ways, rounds):
    """Seconds by name, taken in turns."""
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def table(title, seconds):
    first = next(iter(seconds))
    lines = [f"| {title} | seconds | times ours |", "|---|---|---|"]
    for name, values in seconds.items():
        ratio = median(v / w for v, w in zip(values, seconds[first],
                                             strict=True))
        lines.append(f"| {name} | {median(values):.3g} | {ratio:.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    found = {"Fine-tuning, 1,000 examples": measure(finetuning_pair(),
                                                    rounds),
             "Four options, 216 tokens before them": measure(
                 options_triple(*world_model("small"), 216, 10), rounds),
             "Four options, 400 tokens before them, SmolLM2": measure(
                 options_triple(*smollm(), 400, 1), rounds)}
    text = "\n\n".join([
        "# Fine-tuning and prompting", f"{datetime.date.today()}, "
        f"{platform.processor() or platform.machine()}, two threads, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; "
        f"medians of {rounds} rounds.",
        *(table(*each) for each in found.items())])
    (RESULTS / "finetuning.md").write_text(text + "\n")
    (RESULTS / "finetuning.json").write_text(json.dumps(found, indent=1)
                                             + "\n")
    print(text)


if __name__ == "__main__":
    main()
