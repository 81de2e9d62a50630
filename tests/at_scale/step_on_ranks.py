"""Updates of 3.5's Trainer on this rank's share of a text: run by torchrun, or alone for a world of one.

    step_on_ranks.py ANSWER MODEL TEXT OUT [--per-update 5] [--updates 3] [--without across_ranks | no_sync]

An update takes the next lines of the text, one a micro-batch, and rank r of W takes every W-th of them from the r-th.
Each rank writes OUT/rank<r>.json: reports, parameters after the last update, how often gradients were exchanged.
`--without` is for negative controls: a rank that does not ask for the tokens of the others, a model without no_sync.
"""

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer


def answer_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class AlwaysInStep(DistributedDataParallel):
    no_sync = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("answer", "model", "text", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--per-update", type=int, default=5)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--without", choices=("across_ranks", "no_sync"))
    args = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    answer = answer_at(args.answer)
    if args.without == "across_ranks":
        answer.across_ranks = lambda n_tokens, device: (n_tokens, 1)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    plain = model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float64)
    exchanged = []
    if world > 1:
        dist.init_process_group("gloo")
        model = (AlwaysInStep if args.without == "no_sync" else DistributedDataParallel)(plain)

        def exchange(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            exchanged.append(bucket.index())
            return allreduce_hook(group, bucket)

        model.register_comm_hook(None, exchange)

    trainer = answer.Trainer(model, torch.optim.SGD(model.parameters(), lr=0.5), answer.Strategy("norm", clip_norm=0.5))
    lines = args.text.read_text("utf-8").splitlines()
    reports = []
    for first in range(0, args.updates * args.per_update, args.per_update):
        mine = lines[first : first + args.per_update][rank::world]
        ids = [torch.tensor([tokenizer.encode(line)]) for line in mine]
        reports.append(trainer.step([(x, torch.ones_like(x)) for x in ids], answer.token_loss))
    weights = torch.cat([p.detach().flatten() for p in plain.parameters()]).tolist()
    found = {"reports": reports, "weights": weights, "exchanged": len(exchanged)}
    (args.out / f"rank{rank}.json").write_text(json.dumps(found), "utf-8")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
