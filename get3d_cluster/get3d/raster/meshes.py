"""Meshes of different topology, laid end to end in one vertex and one face array."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Meshes:
    """N meshes packed into one array of vertices and one of faces; any of them may be empty."""

    verts: Tensor  # [sumV, 3] world
    faces: Tensor  # [sumF, 3] int32, into `verts` (global indices)
    vert_ranges: Tensor  # [N, 2] int64 on the CPU: first vertex, number of vertices
    face_ranges: Tensor  # [N, 2] int64 on the CPU: first face, number of faces

    def __len__(self) -> int:
        return int(self.face_ranges.shape[0])

    def mesh(self, index: int) -> tuple[Tensor, Tensor]:
        """Return vertices [V, 3] and faces [F, 3] of one mesh, faces counted from its own first vertex."""
        first_vert, num_verts = self.vert_ranges[index].tolist()
        first_face, num_faces = self.face_ranges[index].tolist()
        faces = self.faces[first_face : first_face + num_faces] - first_vert
        return self.verts[first_vert : first_vert + num_verts], faces


def pack(
    meshes: Sequence[tuple[Tensor, Tensor]],  # vertices [V, 3], faces [F, 3] from 0
) -> Meshes:
    """Lay meshes end to end.

    Raises: ValueError if there are none.
    """
    if not meshes:
        raise ValueError("meshes=[] must hold at least one mesh (an empty mesh counts)")
    vert_ranges = ranges_of([len(verts) for verts, _ in meshes])
    face_ranges = ranges_of([len(faces) for _, faces in meshes])
    starts = vert_ranges[:, 0].tolist()
    return Meshes(
        verts=torch.cat([verts for verts, _ in meshes]),
        faces=torch.cat(
            [faces.to(torch.int32) + first for (_, faces), first in zip(meshes, starts, strict=True)]
        ),
        vert_ranges=vert_ranges,
        face_ranges=face_ranges,
    )


def ranges_of(counts: Sequence[int]) -> Tensor:
    """Return [N, 2] int64: where each of N runs begins, and its length."""
    length = torch.tensor(list(counts), dtype=torch.int64)
    return torch.stack([torch.cumsum(length, 0) - length, length], dim=1)
