"""What is the same for all checkpoints that one run of evaluate measures."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from get3d_cluster.config import read_run_config
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.evaluation.draws import chosen
from get3d_cluster.evaluation.features import Extractor, open_extractor
from get3d_cluster.evaluation.references import digest_of, find_references
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.train.classes import labels_of
from jobs import train
from jobs._array_files import key_of
from jobs._samples import Law

if TYPE_CHECKING:
    from jobs.evaluate import Config

FORMAT = 1
"""Part of every digest: raise it when numbers are made in another way."""
SHAPES_EACH = 5
"""Generated shapes for each reference. Source: Gao et al. 2022, evaluation."""
SHAPES_ALONE = 100


class Setting:
    """What is the same for all checkpoints of a run of evaluate."""

    def __init__(self, config: "Config", training: RunFolder, work_dir: Path, device: str) -> None:
        self.config = config
        self.training = training
        self.device = device
        self._work_dir = work_dir
        self.trained = read_run_config(train.Config, training.config_path)
        self.references = (
            find_references(config.references, config.num_references, config.seed)
            if config.references and config.geometry
            else []
        )
        self.real_rows = self._real_rows()
        self.decisive = self._decisive()
        self.key = key_of(self.decisive)

    @cached_property
    def dataset(self) -> ImageDataset:
        """The real images."""
        data = self.trained.data
        size = self.trained.generator.render.image_size_px
        return ImageDataset(self.config.data or data.path, size, data.mask, data.read, self.device)

    @cached_property
    def extractor(self) -> Extractor:
        """What images are compared by."""
        return open_extractor(self.config.features, self.device)

    @cached_property
    def law(self) -> Law:
        """What generated samples are drawn by: as in training, but for psi."""
        classes = self.trained.generator.classes
        return Law(
            seed=self.config.seed,
            psi=self.config.psi,
            batch=self.config.batch,
            mixing_probability=self.trained.loss.mixing_probability,
            elevation_range_deg=self.trained.data.elevation_range_deg,
            labels=labels_of(self.dataset.samples, classes) if classes else None,
        )

    @property
    def num_shapes(self) -> int:
        """Generated shapes."""
        wanted = self.config.num_shapes or SHAPES_EACH * len(self.references) or SHAPES_ALONE
        return wanted if self.config.geometry else 0

    @property
    def reals_dir(self) -> Path:
        """Folder of the features of real images, which all checkpoints share."""
        key = key_of(FORMAT, self.decisive.get("reals"), self.decisive.get("features"), self.config.seed)
        return self._work_dir / f"reals-{key[:12]}"

    @cached_property
    def references_dir(self) -> Path:
        """Folder of what is known of the references, which all checkpoints share."""
        stats = [[each.name, each.size, each.path.stat().st_mtime_ns] for each in self.references]
        settings = [self.config.shape_points, self.config.light_field, self.config.seed]
        return self._work_dir / f"references-{key_of(FORMAT, stats, settings)[:12]}"

    def folder_of(self, step: int, digest: str) -> Path:
        """Return the folder of what only this checkpoint needs."""
        return self._work_dir / f"step-{step:09d}-{key_of(self.key, digest)[:12]}"

    def _real_rows(self) -> NDArray[np.int64]:
        if not self.config.num_images:
            return np.zeros(0, np.int64)
        return chosen(len(self.dataset), self.config.num_images, "reals", self.config.seed)

    def _decisive(self) -> dict[str, Any]:
        config = self.config
        found: dict[str, Any] = {
            "format": FORMAT,
            "seed": config.seed,
            "psi": config.psi,
            "batch": config.batch,
        }
        if self.trained.generator.classes:
            found["classes_of"] = self.dataset.fingerprint
        if config.num_images:
            names = ("num_images", "kid_subsets", "kid_subset_size", "manifold_images")
            facts = self.extractor.facts
            found |= {name: getattr(config, name) for name in names}
            found["features"] = {"name": facts.name, "digest": facts.digest, "batch": config.features.batch}
            found["reals"] = {
                "dataset": self.dataset.fingerprint,
                "count": len(self.real_rows),
                "mask": self.trained.data.mask,
                "size_px": self.trained.generator.render.image_size_px,
            }
        if config.geometry:
            found |= {name: getattr(config, name) for name in ("shape_points", "light_field")}
            found["num_shapes"] = self.num_shapes
            found["references"] = digest_of(self.references) if self.references else ""
        return found
