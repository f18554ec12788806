"""Which models a folder holds, and why each left-out one was left out. Looks at names only, never writes the folder.

Layouts, recognised folder by folder, so that they may be mixed:
    ShapeNetCore v1      <root>/<synset>/<id>/model.obj
    ShapeNetCore v2      <root>/<synset>/<id>/models/model_normalized.obj
    Objaverse            <root>/glbs/000-000/<uid>.glb               synset 000-000
    plain, in categories <root>/<category>/<name>.obj, or <name>/ with one model file of any name
    plain                <root>/<name>.obj                           synset: the name of <root>
    one category         <root>/<id>/model.obj                       synset: the name of <root>
for .obj, .glb, .gltf and .ply. Synsets and ids are text: many begin with zeros. What the files hold is judged when they
are rendered (preprocess/sources.py): here only names count, so 50,000 folders take seconds.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from get3d_cluster.data.format import fits_into_shard
from get3d_cluster.errors import UsageError
from preprocess.listing import Listings, Look, looked_at
from preprocess.lists import Wanted
from preprocess.sources import printable

OBJAVERSE = "glbs"
LONGEST_NAME = 240
"""Bytes of a model's name where it is written with %-escapes; file systems allow 255, with what is added to it."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class ModelFile:
    """A model that can be rendered."""

    synset: str
    model: str
    path: Path
    """The file that Blender reads."""
    folder: Path | None = None
    """Its own folder; None if the file lies among those of other models."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class LeftOut:
    """Something that looks like a model, or was asked for, and is not rendered."""

    synset: str
    model: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a folder holds; both sorted by synset, then id."""

    models: tuple[ModelFile, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Category:
    synset: str
    folder: Path
    looks: Mapping[str, Look]


def find_models(
    root: Path, synsets: Sequence[str] = (), wanted: Wanted | None = None, listings: Listings | None = None
) -> Found:
    """Look through ``root``, in the given categories or in all of them, for the models of a list or for all.

    ``listings`` remembers what a folder held as long as it does not change.

    Raises: UsageError if the folder or a category does not exist, or nothing in them can be used.
    """
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}", "give the folder that holds <synset>/<id>/model.obj")
    categories, left_out = _categories(root, synsets, listings or Listings())
    models: list[ModelFile] = []
    for category in categories:
        for name, look in sorted(category.looks.items()):
            why = look.why or _name_fault(category.synset, name)
            if not why and wanted:
                why = wanted.why_not(category.synset, name)
            if why:
                left_out.append(_left_out(category.synset, name, why))
            else:
                models.append(_model(category, name, look))
    models, twice = _without_twice(models, categories)
    left_out += twice
    if wanted:
        missing = [(*_split(name), why) for name, why in wanted.missing(models, left_out)]
        left_out += [_left_out(*each) for each in missing if not synsets or each[0] in ("", *synsets)]
    if not models:
        raise _nothing(root, left_out)
    return Found(models=tuple(sorted(models)), left_out=tuple(sorted(left_out)))


def look_again(item: ModelFile) -> ModelFile | LeftOut:
    """Look whether a model is still what the listing said: its folder may have changed since."""
    place = item.folder or item.path
    look = looked_at(place)
    if look.why:
        return _left_out(item.synset, item.model, look.why)
    path = place / look.file if look.file else place
    return ModelFile(synset=item.synset, model=item.model, path=path, folder=item.folder)


def _categories(
    root: Path, synsets: Sequence[str], listings: Listings
) -> tuple[list[_Category], list[LeftOut]]:
    """Return the categories of a folder, itself among them if models lie in it directly."""
    if (root / OBJAVERSE).is_dir():
        root = root / OBJAVERSE
    own_name, top = Path(os.path.realpath(root)).name, listings.read(root, only_model_names=True)
    own = {name: look for name, look in top.items() if not look.why}
    names = sorted(name for name, look in top.items() if look.is_folder and look.why)
    left_out: list[LeftOut] = []
    for synset in synsets:
        if synset not in names and not (own and synset == own_name):
            raise UsageError(f"synset {synset!r} is no folder of {root}", _hint(synset, names))
    if not synsets:
        left_out = [_left_out(name, "", why) for name in names if (why := _alias(root, name))]
        left_out += [
            _left_out(own_name, name, look.why)
            for name, look in top.items()
            if look.why and not look.is_folder
        ]
    aliases = {each.synset for each in left_out if not each.model}
    found = [
        _Category(synset=name, folder=root / name, looks=listings.read(root / name))
        for name in names
        if (name in synsets or not synsets) and name not in aliases
    ]
    if own and (own_name in synsets or not synsets):
        found.append(_Category(synset=own_name, folder=root, looks=own))
    listings.save()
    return found, left_out


def _model(category: _Category, name: str, look: Look) -> ModelFile:
    place = category.folder / look.name
    if not look.is_folder:
        return ModelFile(synset=category.synset, model=name, path=place)
    return ModelFile(synset=category.synset, model=name, path=place / look.file, folder=place)


def _without_twice(
    models: Sequence[ModelFile], categories: Iterable[_Category]
) -> tuple[list[ModelFile], list[LeftOut]]:
    """Leave out links to models that are there under their own name, too."""
    linked = {
        (category.synset, name)
        for category in categories
        for name, look in category.looks.items()
        if look.is_link
    }
    if not linked:
        return list(models), []
    kept: dict[str, ModelFile] = {}
    left_out: list[LeftOut] = []
    for item in sorted(models, key=lambda item: ((item.synset, item.model) in linked, item)):
        first = kept.setdefault(os.path.realpath(item.path), item)
        if first is not item:
            why = f"is a link to {first.synset}/{first.model}, which is rendered"
            left_out.append(_left_out(item.synset, item.model, why))
    return list(kept.values()), left_out


def _alias(root: Path, name: str) -> str:
    """Say why a category is not looked through: it is a link to another one. Empty if not."""
    folder = root / name
    real = Path(os.path.realpath(folder))
    is_other = folder.is_symlink() and real.parent == Path(os.path.realpath(root))
    return f"is a link to the category {real.name}" if is_other else ""


def _name_fault(synset: str, model: str) -> str:
    """Say why a name cannot be that of a folder of images; empty if it can."""
    try:
        written = quote(f"{synset}/{model}", safe="", errors="strict")
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    is_short = len(written) <= LONGEST_NAME and fits_into_shard(f"{synset}/{model}")
    return "" if is_short else "its name is too long: rename it"


def _left_out(synset: str, model: str, why: str) -> LeftOut:
    return LeftOut(synset=printable(synset), model=printable(model), why=printable(why))


def _split(name: str) -> tuple[str, str]:
    synset, _, model = name.rpartition("/")
    return synset, model


def _nothing(root: Path, left_out: Sequence[LeftOut]) -> UsageError:
    why = ""
    if left_out:
        first = left_out[0]
        why = f"; the first of {len(left_out)} left out: {first.synset}/{first.model}: {first.why}"
    archives = next(_archives(root), "")
    return UsageError(
        f"no model can be used in {root}{why}",
        f"unpack {archives} and its like first" if archives else "expected is <synset>/<id>/model.obj",
    )


def _archives(root: Path) -> Iterator[str]:
    return (path.name for path in sorted(root.iterdir()) if path.suffix in (".zip", ".tar", ".gz"))


def _hint(synset: str, present: Sequence[str]) -> str:
    """Recognise an id that lost its zeros because YAML read it as a number, in base 8 or 10."""
    octal = f"0{int(synset):o}" if synset.isdecimal() else ""
    meant = [name for name in present if name in (synset.zfill(8), octal.zfill(8))]
    if meant:
        return f'write synsets=["{meant[0]}"] with quotes: without them it is read as a number'
    return f"choose from: {', '.join(present[:8]) or 'nothing: the folder is empty'}"
