"""Pictures of generated shapes for the jobs that make them: colours beside shaded geometry."""

import numpy as np
from numpy.typing import NDArray

from get3d_cluster.export.pictures import shade
from get3d_cluster.train.previews import Portraits

Images = NDArray[np.float32]


def geometry(portraits: Portraits) -> Images:  # [K, N, H, W, 4]
    """Return the shapes shaded from their normals, from the cameras of their colours."""
    shaded = [
        shade(verts, faces, ids, portraits.to_camera, supersampling=portraits.supersampling)
        for (verts, faces), ids in zip(portraits.meshes, portraits.triangle_ids, strict=True)
    ]
    return np.stack(shaded, axis=1)
