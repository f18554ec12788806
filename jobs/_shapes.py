"""One generated shape after the other: mesh, texture, pictures; a function of checkpoint, settings and number."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from get3d_cluster.config import read_run_config
from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import CheckpointError, Get3dError, UsageError
from get3d_cluster.export.atlas import ColourAt, NoSurfaceError, check_surface, colours_of, textured_mesh
from get3d_cluster.export.files import write_glb, write_obj, write_ply
from get3d_cluster.export.mesh import Faces, Floats, TexturedMesh, facts_of, vertex_normals
from get3d_cluster.export.pictures import enlarged, over_background, turntable_gif, write_png
from get3d_cluster.export.simplify import simplified
from get3d_cluster.export.video import INSTALL, find_encoder, write_mp4
from get3d_cluster.export.views import Lens, textured_views, views
from get3d_cluster.get3d.config import GeneratorConfig
from get3d_cluster.get3d.generator import Generator, Shapes
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.runtime.checkpoint import Checkpoints, DamagedError, list_checkpoints
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.local import clean_folder, explained
from get3d_cluster.train.previews import ring
from jobs import train
from jobs._gallery import Gallery
from jobs._latents import read_latents, write_latents
from jobs._styles import Between, Styles

if TYPE_CHECKING:
    from jobs.generate import Config, MatrixConfig

FORMAT = 2
DEFAULT_SHAPES = 12
TURN_FPS = 12
MATRIX = "matrix"
FACTS = ".json"
ENDS = {"glb": (".glb",), "obj": (".obj", ".mtl", ".png"), "ply": (".ply",)}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint that shapes are made from."""

    step: int
    images: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the first worker decides for all."""

    source: Source
    mp4: bool = False

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Choice":
        """Take back what ``plain`` gave."""
        return Choice(source=Source(**plain["source"]), mp4=plain["mp4"])

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Something to make: a shape, or a cell of the matrix."""

    name: str
    """Path below the output folder that its files begin with."""
    geo: Between
    tex: Between
    ends: tuple[str, ...]
    """Of its files; what is not among them is not made."""


def chosen(config: "Config", training: RunFolder) -> Choice:
    """Decide what depends on the moment and on this machine. Raises: UsageError if it cannot be had."""
    has_encoder = config.mp4 != "off" and config.turntable_every > 0 and find_encoder() is not None
    if config.mp4 == "on" and not has_encoder:
        why = "no ffmpeg was found" if config.turntable_every else "turntable_every=0 asks for no turntables"
        raise UsageError(
            f"mp4=on, but {why}", f"{INSTALL}; or mp4=off" if config.turntable_every else "mp4=off"
        )
    return Choice(source=chosen_source(training, config.step), mp4=has_encoder)


def chosen_source(training: RunFolder, step: int) -> Source:
    """Return the checkpoint of ``step``, or the newest that is not damaged if 0.

    Raises: UsageError if there is none.
    """
    found = [each for each in list_checkpoints(training) if each.state != "damaged"]
    wanted = [each for each in found if step in (0, each.step)]
    if not wanted:
        raise UsageError(
            f"{training.path} has no checkpoint {f'of step={step}' if step else 'yet'}",
            f"it has {[each.step for each in found]}" if found else "let it train until its first checkpoint",
        )
    newest = wanted[-1]
    return Source(step=newest.step, images=newest.images, digest=newest.digest)


class ShapeMaker:
    """Makes the items of one run from the averaged weights of one checkpoint, into ``out``."""

    def __init__(self, config: "Config", training: RunFolder, choice: Choice, out: Path, device: str) -> None:
        settings = read_run_config(train.Config, training.config_path)
        generator_config = _with_cells(settings.generator, config.cells)
        given, digest = read_latents(config.latents, generator_config)
        self._config = config
        self._mp4 = choice.mp4
        self._num_shapes = number_of_shapes(config, len(given))
        self._out = out
        self._generator = _load(training, choice.source, generator_config, device)
        self._styles = Styles(self._generator, config, given)
        self._device = device
        # What a finished shape must have been made from, to be left alone.
        self._made_from = {"format": FORMAT, **asdict(choice.source), **_decisive(config), "latents": digest}
        self._lens = Lens(
            size_px=config.view_px,
            radius=generator_config.render.radius,
            fov_deg=generator_config.render.fov_deg,
        )
        with explained(out):  # before the work begins, not after it
            (out / MATRIX if config.matrix.side else out).mkdir(parents=True, exist_ok=True)
        clean_folder(out)

    @property
    def num_items(self) -> int:
        """Shapes, then the cells of the matrix, row by row."""
        return self._num_shapes + self._config.matrix.side**2

    def item(self, number: int) -> Item:
        """Return what the number stands for."""
        if number < self._num_shapes:
            place = Between(first=number, second=number)
            return Item(name=name_of(number), geo=place, tex=place, ends=self._ends(number))
        side = self._config.matrix.side
        row, column = divmod(number - self._num_shapes, side)
        on_path = places(self._config.matrix)
        return Item(
            name=cell_name(row, column), geo=on_path[row], tex=on_path[column], ends=self._ends_of_cell()
        )

    def present(self) -> Iterator[int]:
        """Yield the numbers of what may have been made, by the names of files alone."""
        side = self._config.matrix.side
        for path in self._out.glob(f"shape-*{FACTS}"):
            if path.stem.removeprefix("shape-").isdigit() and int(path.stem[6:]) < self._num_shapes:
                yield int(path.stem[6:])
        for number in range(side * side):
            if self._facts_path(cell_name(*divmod(number, side))).is_file():
                yield self._num_shapes + number

    def is_made(self, number: int) -> bool:
        """Say whether the item is complete, and from the same checkpoint and settings."""
        item = self.item(number)
        path = self._facts_path(item.name)
        if not path.is_file():
            return False
        try:
            facts = read_json(path)
        except UsageError:  # not ours, or damaged
            return False
        return bool(facts.get("made_from") == self._facts_of(item)["made_from"])

    @torch.no_grad()
    def make(self, number: int) -> None:
        """Write mesh, texture and pictures of an item; its facts come last, and make it count as made.

        A shape without a surface, or with numbers that are not finite, has only facts, which say so.
        """
        item = self.item(number)
        latents = self._styles.at(item.geo, item.tex)
        if ".latents.npz" in item.ends:
            styles = torch.cat([latents.geo, latents.tex], dim=1)[0].cpu().numpy()
            write_latents(self._out / f"{item.name}.latents.npz", styles)
        try:
            facts = self._made(item, latents)
        except NoSurfaceError as error:
            self._remove(item)
            facts = {"files": [], "empty": error.what}
        write_json(self._facts_path(item.name), self._facts_of(item) | facts)

    def finish(self) -> None:
        """Write index, page and sheets of what was made. Raises: UsageError if no shape has a surface."""
        gallery = Gallery(self._out, self._title(), self._config.view_px)
        shapes = [read_json(self._facts_path(self.item(n).name)) for n in range(self._num_shapes)]
        matrix = self._config.matrix
        files = gallery.write_sheet([shape["name"] for shape in shapes if shape["files"]])
        if matrix.side:
            cells = [[cell_name(row, column) for column in range(matrix.side)] for row in range(matrix.side)]
            files |= gallery.write_matrix(cells, matrix.shapes, matrix.view_px)
        told = [{key: value for key, value in each.items() if key != "made_from"} for each in shapes]
        index: dict[str, Any] = {
            "made_from": self._made_from,
            "seed": self._config.seed,
            "num_shapes": self._num_shapes,
            "num_empty": sum(not shape["files"] for shape in shapes),
            "mp4": self._mp4,
            "matrix_of": {"shapes": list(matrix.shapes), "steps": matrix.steps, "meshes": matrix.meshes},
            **files,
            "shapes": told,
        }
        gallery.write_page(index)
        write_json(self._out / "index.json", index)
        if index["num_empty"] == self._num_shapes:
            raise UsageError(
                f"none of {self._num_shapes} shapes has a surface: {shapes[0]['empty']}",
                "let the training go on, or take another step= (launch.py checkpoints RUN)",
            )

    def _made(self, item: Item, latents: Latents) -> dict[str, Any]:
        shapes = self._generator.shapes(latents, closed=True)
        vertices, faces = (tensor.cpu().numpy() for tensor in shapes.meshes.mesh(0))
        check_surface(vertices, faces)
        colour_at = self._colour_at(shapes, latents)
        if not set(item.ends) & {end for ends in ENDS.values() for end in ends}:
            self._write_cell(item, vertices, faces, colour_at)
            return {"files": [f"{item.name}{end}" for end in item.ends], **facts_of(vertices, faces)}
        num_before = len(faces)
        vertices, faces = simplified(vertices, faces, self._config.max_faces or num_before)
        mesh = textured_mesh(vertices, faces, colour_at, self._config.texture_px)
        self._write_mesh(item, mesh, vertices, faces, colour_at)
        if ".gif" in item.ends:
            self._write_turntable(item, mesh)
        self._write_views(item, mesh)
        told = {"files": [f"{item.name}{end}" for end in item.ends], **facts_of(vertices, faces)}
        return told | ({"num_faces_before": num_before} if len(faces) < num_before else {})

    def _write_mesh(
        self, item: Item, mesh: TexturedMesh, vertices: Floats, faces: Faces, colour_at: ColourAt
    ) -> None:
        path = self._out / item.name
        if ".glb" in item.ends:
            write_glb(path.with_name(f"{path.name}.glb"), mesh)
        if ".obj" in item.ends:
            write_obj(path.parent, path.name, mesh)
        if ".ply" in item.ends:
            colours = colours_of(colour_at, torch.from_numpy(vertices))
            normals = vertex_normals(vertices, faces)
            write_ply(path.with_name(f"{path.name}.ply"), vertices, normals, colours, faces)

    def _write_views(self, item: Item, mesh: TexturedMesh) -> None:
        """Write what the file looks like, colours beside geometry; of a cell the colours alone."""
        is_cell = item.name.startswith(MATRIX)
        lens = self._cell_lens() if is_cell else self._lens
        seen = textured_views(mesh, ring(1), lens)
        pictures = [seen.colours[0]] if is_cell else [seen.colours[0], seen.geometry[0]]
        strip = np.concatenate([over_background(picture) for picture in pictures], axis=1)
        write_png(self._out / f"{item.name}.views.png", strip)

    def _write_cell(self, item: Item, vertices: Floats, faces: Faces, colour_at: ColourAt) -> None:
        """Write how a cell looks without making its texture, which takes longest."""
        seen = views(vertices, faces, vertices, colour_at, ring(1), self._cell_lens())
        write_png(self._out / f"{item.name}.views.png", over_background(seen.colours[0]))

    def _write_turntable(self, item: Item, mesh: TexturedMesh) -> None:
        seen = textured_views(mesh, ring(self._config.turntable_frames), self._lens)
        frames = np.concatenate([seen.colours, seen.geometry], axis=2)
        turntable_gif(self._out / f"{item.name}.gif", frames, fps=TURN_FPS)
        if ".mp4" in item.ends:
            encoder = find_encoder()
            if encoder is None:
                raise Get3dError("this machine has no ffmpeg, which that of the first worker has", INSTALL)
            write_mp4(
                self._out / f"{item.name}.mp4", enlarged(over_background(frames)), encoder, fps=TURN_FPS
            )

    def _colour_at(self, shapes: Shapes, latents: Latents) -> ColourAt:
        def colour_at(points: Tensor) -> Tensor:
            own = points.to(self._device)
            whose = torch.zeros(len(own), dtype=torch.int64, device=self._device)
            return self._generator.colours(shapes.planes, latents, whose, own) / 2 + 0.5

        return colour_at

    def _remove(self, item: Item) -> None:
        """Remove what an earlier run with other settings left of a shape that has no surface now."""
        for end in item.ends:
            if end != ".latents.npz":
                (self._out / f"{item.name}{end}").unlink(missing_ok=True)

    def _ends(self, number: int) -> tuple[str, ...]:
        every = self._config.turntable_every
        turning = [".gif", *[".mp4"] * self._mp4] if every and number % every == 0 else []
        return (*self._mesh_ends(), ".latents.npz", ".views.png", *turning)

    def _ends_of_cell(self) -> tuple[str, ...]:
        return (*(self._mesh_ends() if self._config.matrix.meshes else ()), ".views.png")

    def _mesh_ends(self) -> list[str]:
        return [end for kind in self._config.formats for end in ENDS[kind]]

    def _cell_lens(self) -> Lens:
        return dataclasses.replace(self._lens, size_px=self._config.matrix.view_px)

    def _facts_of(self, item: Item) -> dict[str, Any]:
        """Return what is known of an item before it is made."""
        own = {"files": list(item.ends), "mp4": self._mp4}
        if item.name.startswith(MATRIX):
            own |= {"geo": asdict(item.geo), "tex": asdict(item.tex), "view_px": self._config.matrix.view_px}
        told: dict[str, Any] = {"name": item.name, "made_from": self._made_from | own}
        if not item.name.startswith(MATRIX):
            told |= {"number": item.geo.first, "seed": None if self._config.latents else self._config.seed}
        return told

    def _facts_path(self, name: str) -> Path:
        return self._out / f"{name}{FACTS}"

    def _title(self) -> str:
        config, images = self._config, self._made_from["images"]
        source = "latents given" if config.latents else f"seed {config.seed}"
        return f"{self._num_shapes:,} shapes, {source}, psi {config.psi:g}, {images:,} images"


def number_of_shapes(config: "Config", num_given: int) -> int:
    """Return how many shapes to make. Raises: UsageError if there are too few latents for them, or for the matrix."""
    count = config.num_shapes or num_given or DEFAULT_SHAPES
    if config.latents and count > num_given:
        raise UsageError(
            f"num_shapes={count}, but latents= holds {num_given}", f"num_shapes={num_given} or more latents"
        )
    if num_given and max(config.matrix.shapes, default=0) >= num_given:
        raise UsageError(
            f"matrix.shapes={list(config.matrix.shapes)}, but latents= holds {num_given}, counted from 0",
            "name numbers of given latents",
        )
    return count


def name_of(number: int) -> str:
    """Return the name that all files of a shape begin with."""
    return f"shape-{number:05d}"


def cell_name(row: int, column: int) -> str:
    """Return the name that all files of a cell begin with: its geometry is the row's, its texture the column's."""
    return f"{MATRIX}/cell-{row:03d}-{column:03d}"


def places(matrix: "MatrixConfig") -> list[Between]:
    """Return the way from the first shape of a matrix to its last, in equal steps of w."""
    pairs = zip(matrix.shapes[:-1], matrix.shapes[1:], strict=True)
    on_way = [
        Between(first=a, second=b, share=step / matrix.steps)
        for a, b in pairs
        for step in range(matrix.steps)
    ]
    return [*on_way, Between(first=matrix.shapes[-1], second=matrix.shapes[-1])] if on_way else []


def _decisive(config: "Config") -> dict[str, Any]:
    drawn = ("seed", "category", "psi", "w_avg_samples", "mixing")
    made = ("cells", "max_faces", "texture_px", "view_px", "turntable_frames")
    return {name: getattr(config, name) for name in (*drawn, *made)}


def _load(training: RunFolder, source: Source, config: GeneratorConfig, device: str) -> Generator:
    generator = Generator(config)
    generator.load_state_dict(_weights(training, source))
    return generator.to(device).eval().requires_grad_(requires_grad=False)


def _weights(training: RunFolder, source: Source) -> Mapping[str, Tensor]:
    """Read without cleaning up or setting aside anything: the run may be training."""
    checkpoints = Checkpoints(
        open_storage(training.checkpoints_dir), CheckpointConfig(), check_owner=lambda: None
    )
    try:
        loaded = checkpoints.read_step(source.step)
    except DamagedError as error:
        raise CheckpointError(
            f"checkpoint of step={source.step} cannot be read: {str(error)[:300]}",
            "the training may have let it go: start another run of generate, for the newest",
        ) from error
    if loaded.digest != source.digest:
        raise CheckpointError(
            f"checkpoint of step={source.step} is another than when this run began",
            "start another run of generate",
        )
    weights: Mapping[str, Tensor] = loaded.state["generator_ema"]
    return weights


def _with_cells(config: GeneratorConfig, cells: int) -> GeneratorConfig:
    if not cells:
        return config
    return dataclasses.replace(config, grid=dataclasses.replace(config.grid, cells=cells, tet_res=0))
