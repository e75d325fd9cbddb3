"""Estimate a run's time and memory, and choose the number of runs in a batch."""

from pathlib import Path

from normstudy.config import BPE_VOCAB, EVAL_CHUNK, GATED, RunConfig, resolve
from normstudy.config.execution import workers_of

# On a CPU a larger batch spreads the overhead of each operation over more runs, but no longer fits into the caches.
# This table has the CPU time of one step of one run in ms, with 4, 8, 16, 32 and 64 runs per batch (-: not measured).
# d32 L4 is a model with d_model 32 and 4 layers. Measured with two busy cores of an EPYC Zen 5 (torch 2.13, NumPy 2.4).
#     d32 L4   -, 2.71, 2.23, 2.10, 2.05       d64 L2   -, 5.23, 5.26, 5.41, -
#     d64 L6   13.9, 12.6, 13.1, 13.5, -       d128 L6  66.5, 70.3, -, -, -
# Smaller models need more runs: choose as many as have residual streams of about CPU_STREAM numbers in total.
CPU_STREAM = 2**19
CPU_RUNS = (4, 32)  # fewest and most runs per batch
GPU_RUNS = 1024  # most runs per batch; a larger batch would not train faster
GPU_SEQUENCES = 65_535  # most sequences per batch, because fused attention maps them to a grid axis of this size
GPU_OF_A_JOB = 2**36  # assumed bytes of a Slurm job's GPU; on a smaller GPU the job halves batches that do not fit
MEMORY_SHARE = 0.5  # fraction of the free memory that all batches together may use; low, as estimates are rough
FLOAT = 4  # bytes per number
PROCESS = 2**28  # bytes of a process that has imported torch


def runs_per_batch(config: RunConfig, device: str, workers: int) -> int:
    """Return how many runs with the shape of `config` a batch may have. Assumes that a Slurm job has its own node."""
    execution = config.execution
    if on_slurm := execution.cluster == "slurm":
        workers = workers_of(execution)
    if on_slurm and device == "cuda":
        free = GPU_OF_A_JOB
    elif on_slurm and execution.memory_gb is not None:
        free = int(execution.memory_gb * 2**30)
    else:
        free = free_memory(device)
    fitting = max(1, int(MEMORY_SHARE * free / workers / bytes_of_run(config)))
    if device == "cuda":
        return max(1, min(fitting, GPU_RUNS, GPU_SEQUENCES // config.data.batch_size))
    low, high = CPU_RUNS
    stream = config.data.batch_size * config.data.seq_len * config.model.d_model
    return min(fitting, max(low, min(high, CPU_STREAM // stream)))


def bytes_of_run(config: RunConfig) -> int:
    """Estimate how many bytes a run needs for parameters, two gradient copies, two optimizer slots and activations."""
    m, d = config.model, config.data
    d_ff, vocab_size = resolve(m).d_ff, _vocab_size(config)
    # Kept for the backward pass, per block: input, norm outputs, q, k, v, attention weights, weighted values, attention
    # output, MLP output, and the activation's input and output. Kept for the loss: logits and softmax.
    widths = 12 * m.d_model + (4 if m.activation in GATED else 2) * d_ff + m.n_heads * d.seq_len
    per_token = m.n_layers * widths + 3 * vocab_size
    at_once = 8 * m.d_model + 2 * d_ff + m.n_heads * d.seq_len  # evaluation keeps one block's activations at a time
    evaluated = EVAL_CHUNK * d.seq_len * (at_once + 3 * vocab_size)
    parameters = m.n_layers * _matrices(config) + 2 * vocab_size * m.d_model
    return FLOAT * (5 * parameters + max(d.batch_size * d.seq_len * per_token, evaluated))


def seconds_of(config: RunConfig) -> float:
    """Estimate a run's seconds on a core: 6 flops per parameter and token at 100 GFLOP/s, 0.3 ms per layer and step."""
    m, d = config.model, config.data
    per_token = m.n_layers * (_matrices(config) + 2 * d.seq_len * m.d_model) + _vocab_size(config) * m.d_model
    flops = 6 * d.batch_size * d.seq_len * per_token
    return config.schedule.n_steps * (flops / 100e9 + 3e-4 * (m.n_layers + 1))


def _matrices(config: RunConfig) -> int:
    """Return the number of elements in one block's matrices."""
    m = config.model
    return 4 * m.d_model**2 + (3 if m.activation in GATED else 2) * m.d_model * resolve(m).d_ff


def _vocab_size(config: RunConfig) -> int:
    """Return the vocabulary size. For tokenizer=char the size depends on the text, so return the upper bound 256."""
    d = config.data
    return d.vocab_size or BPE_VOCAB if d.tokenizer == "bpe" else 256


def free_memory(device: str, *, whole: bool = False) -> int:
    """Return the free bytes of memory (all bytes if `whole`) of the GPU, or of this machine or container."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[whole])
    with open("/proc/meminfo") as f:
        fields = dict(line.split(":", 1) for line in f)
    free = int(fields["MemTotal" if whole else "MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text().strip() != "max":  # a container's memory limit
        free = min(free, max(0, int(limit.read_text()) - (not whole) * int(used.read_text())))
    return free
