"""Capture a step as a CUDA graph.

A step of a small model runs about a thousand kernels of a few microseconds each. Launching the kernels one by one
takes longer than running them. A graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARMUP = 3  # steps before the capture, during which libraries select kernels and allocate workspaces

Step = Callable[..., Sequence[Tensor]]


def captured(step: Step, inputs: Sequence[Tensor], changed: Sequence[Tensor]) -> Step:
    """Capture `step` as a CUDA graph, and return a function that replays the graph.

    changed: the tensors that `step` changes. After the capture, they are set back to their values before the capture.
    """
    before = [t.clone() for t in changed]
    static = [t.clone() for t in inputs]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            step(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            outputs = step(*static)
    finally:  # a failed capture may leave another CUDA stream selected
        torch.cuda.set_stream(current)
    for now, old in zip(changed, before, strict=True):
        now.copy_(old)

    def replay(*given: Tensor) -> list[Tensor]:
        for place, value in zip(static, given, strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        return [t.clone() for t in outputs]

    return replay
