"""What decides the bits of a computation beside code, configuration and data, and what of it has changed."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from get3d_cluster.dist.group import Group
from get3d_cluster.runtime.env import variables_set

VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_CPU_ISA_HINTS",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "NUMBA_CPU_FEATURES",
    "NUMBA_CPU_NAME",
    "NUMBA_DISABLE_INTEL_SVML",
    "NUMBA_DISABLE_JIT",
    "NUMBA_ENABLE_AVX",
    "NUMBA_OPT",
    "OMP_DYNAMIC",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)
"""Variables with which libraries choose other kernels for the CPU, or another number of threads."""
GPU_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
)
UNLIKE = "unlike_rank_0"
"""Ranks that compute in another environment than rank 0."""
_CPUINFO = Path("/proc/cpuinfo")
_COMPUTING = ("sse", "ssse", "avx", "fma", "f16c", "amx", "bmi", "fp", "asimd", "sve", "sme", "bf16", "i8mm")
"""What begins the names of instructions that compute; others come and go with the kernel."""

Changes = dict[str, list[Any]]
"""What it was and what it is now, by name."""


def numeric_fingerprint(device: str = "cpu") -> dict[str, Any]:
    """Return versions, threads, instruction set and kernels with which this process computes on ``device``.

    Only what is set is among ``variables``. Imports torch.
    """
    import numpy as np
    import torch

    is_cuda = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "build": _digest(_without_capability(torch.__config__.show())),
        "numpy": np.__version__,
        "numba": _version("numba"),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "cuda": torch.version.cuda if is_cuda else None,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,
        "fp32": _fp32_precisions() if is_cuda else None,
        "onednn": _onednn(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "variables": variables_set((*VARIABLES, *(GPU_VARIABLES if is_cuda else ()))),
    }


def fingerprint_of_all(group: Group, device: str) -> dict[str, Any]:
    """Return rank 0's fingerprint, and which ranks have another one. All ranks call it, and get the same."""
    mine = numeric_fingerprint(device)
    lead: dict[str, Any] = group.broadcast(mine)
    is_unlike = bool(changes(lead, mine))
    flags = group.any([is_unlike and rank == group.rank for rank in range(group.world_size)])
    return lead | {UNLIKE: [rank for rank, flag in enumerate(flags) if flag]}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Return what differs of what both tell; an older version may have told less.

    >>> changes({"threads": 1, "variables": {}}, {"threads": 2, "variables": {"MKL_CBWR": "AVX2"}, "isa": "AVX2"})
    {'threads': [1, 2], 'MKL_CBWR': [None, 'AVX2']}
    """
    found = {
        key: [before[key], now[key]]
        for key in before
        if key != "variables" and key in now and before[key] != now[key]
    }
    if "variables" in before and "variables" in now:
        old, new = before["variables"], now["variables"]
        names = sorted({*old, *new})
        found |= {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}
    return found


def not_bitwise_rows(
    meta: Mapping[str, Any], now: Mapping[str, Any], step: int, attempt: int
) -> list[dict[str, Any]]:
    """Return where a run has gone on in another numeric environment, oldest first: so far, and perhaps at ``step``.

    ``meta`` is what the checkpoint tells from which it goes on now, or nothing. An attempt that left no checkpoint
    behind has changed no bit, and is not told of.
    """
    rows = [dict(row) for row in meta.get("not_bitwise", ())]
    if changed := changes({UNLIKE: [], **meta.get("on", {})}, now):
        rows.append({"step": step, "attempt": attempt, "changed": changed})
    return rows


def told(changed: Mapping[str, Sequence[Any]]) -> str:
    """Return changes in words.

    >>> told({"threads": [1, 2], "MKL_CBWR": [None, "AVX2"]})
    'threads 1 -> 2, MKL_CBWR unset -> AVX2'
    """
    return ", ".join(f"{key} {_shown(old)} -> {_shown(new)}" for key, (old, new) in changed.items())


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _without_capability(config: str) -> str:
    """Return how torch was built, without what it found on this machine."""
    return "\n".join(line for line in config.splitlines() if "capability usage" not in line)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Return maker, model and a digest of the instructions of this CPU: libraries choose kernels by all three."""
    try:
        text = _CPUINFO.read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor()
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, value in pairs}
    names = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")
    flags = (facts.get("flags") or facts.get("Features", "")).split()
    computing = sorted(flag for flag in flags if flag.startswith(_COMPUTING))
    known = " ".join(facts[name] for name in names if name in facts)
    return f"{known} {_digest(' '.join(computing))}"


def _onednn() -> dict[str, Any]:
    """Return whether the CPU computes by oneDNN, and how that treats float32. A GPU's run has work for the CPU, too.

    ``torch.set_float32_matmul_precision`` shows here; to read it back is an error once newer switches were set.
    """
    from torch import backends

    onednn: Any = backends.mkldnn
    kinds = {"matmul": onednn.matmul, "conv": onednn.conv, "rnn": onednn.rnn}
    precisions = {name: kind.fp32_precision.replace("none", "ieee") for name, kind in kinds.items()}
    return {"enabled": bool(onednn.enabled), **precisions}


def _fp32_precisions() -> dict[str, str]:
    """Return how matrix products and convolutions treat float32: ieee, tf32, ... ; none: as torch.backends says."""
    from torch import backends

    conv = backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # torch makes a class of this module
    return {"matmul": backends.cuda.matmul.fp32_precision, "conv": conv}
