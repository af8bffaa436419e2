"""A table of rows in PyTorch, updated by SparseAdam or dense Adam: the rival of `bench_tables`, without JAX.

python benchmarks/torch_tables.py '{"num_users": 10000, "steps": 20, "sparse": true}'
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torch_reference import device, peak_gib, settle

WIDTH, PAIRS = 65, 2048


def run(num_users: int, steps: int, sparse: bool, same_rows: bool = False) -> dict[str, Any]:
    """Seconds of reading, pulling and updating rows; with `same_rows` also what became of the first."""
    # Filled, not zeros: fresh pages of the kernel would be paid for in the first steps.
    start_values = torch.full((num_users, WIDTH), 0.01, device=device())
    table = torch.nn.Embedding.from_pretrained(start_values, freeze=False, sparse=sparse)
    parameters = list(table.parameters())
    optimizer = torch.optim.SparseAdam(parameters, lr=0.01) if sparse else torch.optim.Adam(parameters, lr=0.01)
    rng, seconds = np.random.default_rng(0), []
    for number in range(steps):
        if not number or not same_rows:
            ids = torch.from_numpy(rng.integers(0, num_users, PAIRS, dtype=np.int32)).long().to(device())
        target = torch.from_numpy(rng.normal(size=(PAIRS, WIDTH)).astype(np.float32)).to(device())
        settle()
        start = time.perf_counter()
        optimizer.zero_grad()
        (0.5 * (table(ids) - target).square().sum()).backward()
        optimizer.step()
        settle()
        seconds.append(time.perf_counter() - start)
        if not number and not same_rows:
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameters[0]][moment].fill_(0.0)
    rows = table.weight[ids[:8]].tolist() if same_rows else None
    bytes_held = 3 * table.weight.numel() * 4
    found = {"seconds": seconds[3:], "table_gib": bytes_held / (1 << 30), "rows": rows, "peak_gib": peak_gib()}
    return found | {"torch": torch.__version__}


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
