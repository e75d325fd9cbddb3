"""What only a GPU needs: a step as a CUDA graph. A small model's step is some thousand kernels of a few microseconds
each, and launching them one by one takes longer than running them; a graph is launched at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARMUP = 3  # steps before the capture, in which libraries choose their kernels and allocate what they keep

Step = Callable[..., Sequence[Tensor]]


def captured(step: Step, inputs: Sequence[Tensor], changed: Sequence[Tensor]) -> Step:
    """`step` as a function of tensors like `inputs`, replayed as one CUDA graph; gives new tensors each time.

    changed: the tensors that a step changes in place. They are what they were once the graph is captured.
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
    finally:  # a capture that fails may leave its own stream the current one
        torch.cuda.set_stream(current)
    for now, old in zip(changed, before, strict=True):
        now.copy_(old)

    def replay(*given: Tensor) -> list[Tensor]:
        for place, value in zip(static, given, strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        return [t.clone() for t in outputs]

    return replay
