"""How long marching tetrahedra take on the grid of the paper's resolution 90, beside calls of `unique` in every step.

    .venv/bin/python -m pytest -m bench -s tests/bench/test_tets.py

The variants extract the same triangles. The first finds the edges of crossed tetrahedra by `unique` over pairs of
vertices, as is usual; the second over one number for each pair. Processor time of one thread, least of several rounds.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from get3d_cluster.get3d.tets import _CASES as CASES
from get3d_cluster.get3d.tets import TET_EDGES, TetGrid, bcc_grid, close_boundary, marching_tets
from tests.solids import car

pytestmark = pytest.mark.bench

CELLS = 36
RESULT = Path(__file__).parent / "results" / "tets.json"

Extract = Callable[[Tensor, Tensor, TetGrid], tuple[Tensor, Tensor]]


def ours(positions: Tensor, sdf: Tensor, grid: TetGrid) -> tuple[Tensor, Tensor]:
    return marching_tets(positions[None], sdf[None], grid).mesh(0)


def per_call(unique: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Extract:
    def extract(positions: Tensor, sdf: Tensor, grid: TetGrid) -> tuple[Tensor, Tensor]:
        inside = sdf.detach() > 0
        corners = inside[grid.tets]
        count = corners.sum(dim=1)
        crossed = (count > 0) & (count < 4)
        tets = grid.tets[crossed]
        ends = tets[:, torch.tensor(TET_EDGES)].reshape(-1, 2).sort(dim=1).values
        edges, place = unique(ends, len(sdf))
        cut = inside[edges].sum(dim=1) == 1
        number = torch.full((len(edges),), -1, dtype=torch.int64)
        number[cut] = torch.arange(int(cut.sum()))
        a, b = edges[cut].unbind(1)
        share = sdf[a] / (sdf[a] - sdf[b])
        verts = positions[a] + share[:, None] * (positions[b] - positions[a])
        case = (corners[crossed].long() * torch.tensor([1, 2, 4, 8])).sum(dim=1)
        local = CASES[case]  # [A, 2, 3]
        there = number[place].view(-1, 6).gather(1, local.clamp(min=0).view(-1, 6)).view(-1, 2, 3)
        return verts, there[local[:, :, 0] >= 0]

    return extract


def by_rows(ends: Tensor, num_vertices: int) -> tuple[Tensor, Tensor]:
    edges, place = torch.unique(ends, dim=0, return_inverse=True)
    return edges, place


def by_numbers(ends: Tensor, num_vertices: int) -> tuple[Tensor, Tensor]:
    key, place = torch.unique(ends[:, 0] * num_vertices + ends[:, 1], return_inverse=True)
    return torch.stack([key // num_vertices, key % num_vertices], dim=1), place


VARIANTS = {"ours": ours, "unique by rows": per_call(by_rows), "unique by numbers": per_call(by_numbers)}


def fields(grid: TetGrid) -> dict[str, Tensor]:
    noise = torch.randn(len(grid.vertices), generator=torch.Generator().manual_seed(0))
    waves = torch.sin(23 * grid.vertices[:, [1, 2, 0]]).sum(dim=1) + torch.sin(31 * grid.vertices).prod(dim=1)
    named = {"car": car(grid.vertices), "waves": waves, "noise": noise}
    return {name: close_boundary(sdf[None], grid)[0] for name, sdf in named.items()}


def least_ms(extract: Extract, grid: TetGrid, sdf: Tensor, gradient: bool) -> float:
    positions, least, begun_s, rounds = (
        grid.vertices.clone().requires_grad_(gradient),
        1e9,
        time.perf_counter(),
        0,
    )
    sdf = sdf.clone().requires_grad_(gradient)
    while rounds < 3 or time.perf_counter() - begun_s < 0.6:
        begun = time.process_time()
        verts, _ = extract(positions, sdf, grid)
        if gradient:
            torch.autograd.grad(verts.sum(), [positions, sdf])
        least, rounds = min(least, time.process_time() - begun), rounds + 1
    return round(1000 * least, 2)


def test_marching_tetrahedra_take_an_eighth_of_the_time_that_unique_takes() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    grid = bcc_grid(CELLS)
    rows = []
    try:
        for field, sdf in fields(grid).items():
            for gradient in (False, True):
                times = {name: least_ms(extract, grid, sdf, gradient) for name, extract in VARIANTS.items()}
                faces = len(ours(grid.vertices, sdf, grid)[1])
                rows.append({"field": field, "triangles": faces, "gradient": gradient, "ms": times})
                print(rows[-1], flush=True)
    finally:
        torch.set_num_threads(threads)
    RESULT.parent.mkdir(exist_ok=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "tets": len(grid.tets)}
    RESULT.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    for row in rows:
        assert row["ms"]["ours"] * 8 <= row["ms"]["unique by rows"], row


@pytest.mark.parametrize("variant", ["unique by rows", "unique by numbers"])
def test_the_variants_extract_the_same_surface(variant: str) -> None:
    grid = bcc_grid(8)
    for sdf in fields(grid).values():
        verts, faces = ours(grid.vertices, sdf, grid)
        their_verts, their_faces = VARIANTS[variant](grid.vertices, sdf, grid)
        assert torch.equal(verts, their_verts)
        assert torch.equal(faces.long(), their_faces)
