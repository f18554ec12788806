"""Which models there are, and their files on disk."""

from dataclasses import dataclass
from pathlib import Path

from get3d_cluster.storage.local import write_atomic
from preprocess.shapes.car import car
from preprocess.shapes.car_body import CAR_KINDS
from preprocess.shapes.chair import CHAIR_KINDS, chair
from preprocess.shapes.draw import VERSION, Draw
from preprocess.shapes.obj import MTL, normalised, obj_bytes
from preprocess.shapes.texture import png_bytes

CAR_SYNSET = "02958343"
CHAIR_SYNSET = "03001627"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One model to make."""

    synset: str
    model: str
    kind: str


def planned(cars: int = 48, chairs: int = 6) -> list[Shape]:
    """List the models; more of them begin with the same ones."""
    kinds = [(CAR_SYNSET, CAR_KINDS, cars), (CHAIR_SYNSET, CHAIR_KINDS, chairs)]
    return [
        Shape(synset=synset, model=f"{index:04d}-{names[index % len(names)]}", kind=names[index % len(names)])
        for synset, names, count in kinds
        for index in range(count)
    ]


def write_shapes(root: Path, cars: int = 48, chairs: int = 6, seed: int = 0) -> list[Shape]:
    """Write all models below ``root`` and return them; finished ones are left as they are."""
    shapes = planned(cars, chairs)
    for shape in shapes:
        if not is_written(root, shape, seed):
            write_shape(root, shape, seed)
    return shapes


def write_shape(root: Path, shape: Shape, seed: int = 0) -> None:
    """Write ``<root>/<synset>/<model>/{images/texture.png, model.mtl, model.obj}``.

    The OBJ file comes last: it means done.
    """
    folder = root / shape.synset / shape.model
    obj, texture = made(shape, seed)
    write_atomic(folder / "images" / "texture.png", texture)
    write_atomic(folder / "model.mtl", MTL.encode())
    write_atomic(folder / "model.obj", obj)


def is_written(root: Path, shape: Shape, seed: int = 0) -> bool:
    """Tell whether the model is there, made with the same seed by the same version."""
    path = root / shape.synset / shape.model / "model.obj"
    if not path.is_file():
        return False
    with path.open() as file:
        return file.readline().rstrip("\n") == _header(shape, seed)


def made(shape: Shape, seed: int = 0) -> tuple[bytes, bytes]:
    """Return the bytes of model.obj and of its texture."""
    model = car if shape.synset == CAR_SYNSET else chair
    parts, texture = model(shape.kind, Draw(seed, shape.synset, shape.model))
    return obj_bytes(_header(shape, seed), normalised(parts)), png_bytes(texture)


def _header(shape: Shape, seed: int) -> str:
    return f"# get3d-cluster shapes {VERSION}, seed {seed}, {shape.synset}/{shape.model}"
