"""A nested state as JSON and tensors, and what its digest is made of. Knows tensors by ``detach`` alone: no torch."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from get3d_cluster.errors import UsageError


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the bytes of a tensor lie. Stands for it in a process that has no torch."""

    file: str
    offset: int
    num_bytes: int
    dtype: str
    """As ``str(tensor.dtype)``."""
    shape: tuple[int, ...]

    layout = "torch.strided"
    is_quantized = False

    def detach(self) -> "Stored":
        """Return itself, as a tensor returns one without its history."""
        return self


def pack_all(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return ``state`` as tagged JSON, and the tensors of each top-level name by their names.

    What JSON has not stands there as a table of one tagged entry: ``{"$tensor": NAME}`` (of its top-level name),
    ``{"$tuple": [...]}``, ``{"$dict": [[KEY, VALUE], ...]}`` for keys that are numbers or begin with ``$``,
    ``{"$counter": [[KEY, COUNT], ...]}``. All but the tensors is a copy.

    Raises: UsageError naming the first value or key that could not come back as it is.
    """
    tree: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for part, value in state.items():
        if type(part) is not str or "/" in part:
            raise UsageError(f"state key {part!r} must be a text without a slash", "rename it")
        tensors: dict[str, Any] = {}
        tree[part] = pack(value, (part,), tensors)
        if tensors:
            found[part] = tensors
    return tree, found


def unpack_all(tree: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state that ``pack_all`` was given. Raises: ValueError if a tensor is there that it does not name."""
    state = {}
    for part, packed in tree.items():
        left = dict(tensors.get(part, {}))
        state[part] = unpack(packed, left)
        if left:
            raise ValueError(f"{part} holds tensors that the state does not name: {', '.join(left)}")
    return state


def digest_plan(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return, in order, what the digest of a state reads: a text, and the tensor whose bytes follow it, or None."""
    for path, leaf in sorted(flatten(state), key=lambda item: item[0]):
        inside: dict[str, Any] = {}
        packed = pack(leaf, ("", *path), inside)  # so that names are whole paths
        if not is_tensor(leaf):
            yield f"{'/'.join(path)} {json.dumps(_canonical(packed), sort_keys=True)}\n", None
        for name, tensor in inside.items():
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n", tensor


def shape_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return which tensors of a saved state do not fit the one that is wanted, with both shapes.

    Parts in which nothing is wanted yet, as in an optimizer before its first step, have no say.
    """
    (_, before), (_, now) = pack_all(saved), pack_all(wanted)
    found = []
    for part in (part for part in now if part in before):
        for name in {**before[part], **now[part]}:
            old, new = (_shape(tensors.get(name)) for tensors in (before[part], now[part]))
            if old != new:
                found.append(f"{part}/{name} is {old}, wanted is {new}")
    return found


def _shape(tensor: Any) -> str:
    return "absent" if tensor is None else str(list(tensor.shape))


def flatten(state: Mapping[Any, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Return the leaves of nested mappings with their paths; a list or a tuple is one leaf. Raises: UsageError."""
    leaves: list[tuple[tuple[str, ...], Any]] = []
    for key, value in state.items():
        here = (*path, _key_text(key, path))
        if isinstance(value, Mapping) and value:
            leaves += flatten(value, here)
        else:
            leaves.append((here, value))
    return leaves


def pack(value: Any, path: tuple[str, ...], tensors: dict[str, Any]) -> Any:
    """Return ``value`` as tagged JSON, and put its tensors into ``tensors``. Raises: UsageError."""
    if is_tensor(value):
        name = "/".join(path[1:]) or path[0]
        _refuse_tensor(value, path)
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        return _pack_mapping(value, path, tensors)
    if type(value) in (list, tuple):
        items = [pack(item, (*path, f"$[{index}]"), tensors) for index, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UsageError(
        f"state {'/'.join(path)} is a {kind}, which a checkpoint does not hold",
        "make it a tensor, a number, a text, or a dict, list or tuple of these",
    )


def _pack_mapping(value: Mapping[Any, Any], path: tuple[str, ...], tensors: dict[str, Any]) -> Any:
    pairs = [[key, pack(item, (*path, _key_text(key, path)), tensors)] for key, item in value.items()]
    if isinstance(value, Counter):
        return {"$counter": pairs}
    if all(type(key) is str and not key.startswith("$") for key in value):
        return dict(pairs)
    return {"$dict": pairs}


def unpack(packed: Any, tensors: dict[str, Any]) -> Any:
    """Return what ``pack`` was given, and take its tensors out of ``tensors``."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    match next(iter(packed.items()), ("", None)):
        case "$tensor", name:
            return tensors.pop(name)
        case "$tuple", items:
            return tuple(unpack(item, tensors) for item in items)
        case "$dict" | "$counter" as tag, pairs:
            both = {key: unpack(item, tensors) for key, item in pairs}
            return Counter(both) if tag == "$counter" else both
        case _:
            return {key: unpack(item, tensors) for key, item in packed.items()}


def _canonical(packed: Any) -> Any:
    """Return packed JSON without what the digest does not see."""
    if isinstance(packed, list):
        return [_canonical(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    match next(iter(packed.items()), ("", None)):
        case "$tuple", items:
            return _canonical(items)
        case "$dict" | "$counter", pairs:
            return {"$dict": sorted(_canonical(pairs), key=lambda pair: json.dumps(pair[0]))} if pairs else {}
        case _:
            return {key: _canonical(item) for key, item in packed.items()}


def _key_text(key: object, path: tuple[str, ...]) -> str:
    """Return a key as a part of a path, two different keys never alike. Raises: UsageError."""
    if type(key) not in (str, int):
        raise UsageError(
            f"state key {key!r} below {'/'.join(path) or 'the top'} must be a text or a whole number",
            "use another key",
        )
    if type(key) is str and not key.startswith("$") and "/" not in key and key != "__metadata__":
        return key  # that name is taken in a safetensors file
    return f"${json.dumps(key)}"


def _refuse_tensor(tensor: Any, path: tuple[str, ...]) -> None:
    kind, layout = str(tensor.dtype), str(tensor.layout)
    if layout != "torch.strided" or tensor.is_quantized or kind in ("torch.complex128", "torch.complex32"):
        raise UsageError(
            f"state {'/'.join(path)} is a tensor of {kind}, {layout}, which safetensors does not hold",
            "save it as a dense tensor of another type",
        )


def is_tensor(leaf: object) -> bool:
    """Say whether a leaf is a tensor."""
    return hasattr(leaf, "detach")
