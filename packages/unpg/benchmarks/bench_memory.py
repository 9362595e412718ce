"""Peak memory of one forward and backward, each in a process of its own: `results/memory.json`.

Beyond the embeddings, the class weights and the gradient of these, which every loss has. ``--tiny`` at a size that
only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from formulas import OfficialFormula
from torch import nn

from offprints.shared.benchmark import machine
from offprints.shared.device import peak_memory_mib, reset_peak_memory
from offprints.unpg import ArcFaceHead, UNPGLoss

RESULTS = Path(__file__).parent / "results"
DIM = 512
BLOCK = 4096  # classes of a block
WORKS = {  # rows, classes: what is measured
    (256, 10_000): ("official formula", "UNPGLoss", "class_chunk"),
    (512, 10_000): ("UNPGLoss", "class_chunk"),
    (512, 1_000_000): ("class_chunk",),
}


def extra_memory(contender: str, rows: int, classes: int, dim: int) -> float:
    """MiB of the second of two calls; the first fills what torch keeps once."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = loss_of(contender, 16, dim)
    small(torch.randn(8, dim, requires_grad=True), torch.arange(8)).backward()
    loss = loss_of(contender, classes, dim)
    x, y = torch.randn(rows, dim, requires_grad=True), torch.randint(classes, (rows,))
    reset_peak_memory()
    before = peak_memory_mib()
    loss(x, y).backward()
    return peak_memory_mib() - before - classes * dim * 4 / 2**20


def loss_of(contender: str, classes: int, dim: int) -> nn.Module:
    head = ArcFaceHead(dim, classes)
    if contender == "official formula":
        return OfficialFormula(head, 1.5)
    return UNPGLoss(head, class_chunk=BLOCK if contender == "class_chunk" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    record: dict[str, dict[str, float]] = {}
    for (rows, classes), contenders in WORKS.items():
        sizes = (rows // 8, classes // 100, 8) if tiny else (rows, classes, DIM)
        work = f"{sizes[0]} rows, {sizes[1]} classes"
        for contender in contenders:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                mib = round(pool.submit(extra_memory, contender, *sizes).result(), 1)
            record.setdefault(work, {})[contender] = mib
            print(f"{work:28} {contender:18} {mib:8.1f} MiB", flush=True)
    if not tiny:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps({"benchmark": "memory", "machine": machine(), "peak_mib": record}, indent=2)
        (RESULTS / "memory.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
