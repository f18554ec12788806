"""Parts of the worker that need no Blender: which devices it switches on, with a ``bpy`` that pretends to have some."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

PROGRAM = Path(__file__).parents[3] / "preprocess" / "blender_worker.py"
spec = importlib.util.spec_from_file_location("blender_worker", PROGRAM)
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)


class Preferences:
    """Cycles' preferences as Blender's manual describes them: devices are known after a refresh."""

    def __init__(self, present: dict[str, int], known: tuple[str, ...]) -> None:
        self._present = present
        self._known = known
        self._kind = "NONE"
        self.devices: list[SimpleNamespace] = []

    @property
    def compute_device_type(self) -> str:
        return self._kind

    @compute_device_type.setter
    def compute_device_type(self, kind: str) -> None:
        if kind not in self._known:
            raise TypeError(f"enum {kind!r} not found in {self._known}")
        self._kind = kind

    def refresh_devices(self) -> None:
        gpus = [
            SimpleNamespace(name=f"GPU {index}", type=self._kind, use=True, id=f"{self._kind}{index}")
            for index in range(self._present.get(self._kind, 0))
        ]
        cpu = SimpleNamespace(name="CPU", type="CPU", use=True, id="CPU")
        self.devices = [*gpus, cpu]


def worker(present: dict[str, int], known: tuple[str, ...] = ("NONE", "CUDA", "OPTIX")) -> program.Worker:
    made = program.Worker()
    preferences = Preferences(present, known)
    addon = SimpleNamespace(preferences=preferences)
    made.bpy = SimpleNamespace(context=SimpleNamespace(preferences=SimpleNamespace(addons={"cycles": addon})))
    made.cycles = preferences
    return made


def used(made: program.Worker) -> list[str]:
    return [each.id for each in made.cycles.devices if each.use]


@pytest.mark.parametrize(
    ("wanted", "gpus", "present", "kind", "switched_on"),
    [
        ("gpu", None, {"OPTIX": 2, "CUDA": 2}, "OPTIX", ["OPTIX0", "OPTIX1"]),
        ("gpu", [1], {"OPTIX": 2, "CUDA": 2}, "OPTIX", ["OPTIX1"]),
        ("gpu", [0], {"CUDA": 1}, "CUDA", ["CUDA0"]),
        ("cuda", None, {"OPTIX": 1, "CUDA": 1}, "CUDA", ["CUDA0"]),
        ("optix", [0], {"OPTIX": 1}, "OPTIX", ["OPTIX0"]),
    ],
)
def test_exactly_the_wanted_gpus_are_switched_on_and_never_the_cpu(
    wanted: str, gpus: list | None, present: dict, kind: str, switched_on: list
) -> None:
    made = worker(present)
    assert made._choose_device(wanted, gpus)[0] == kind
    assert used(made) == switched_on


@pytest.mark.parametrize(
    ("wanted", "gpus", "present"),
    [("gpu", None, {}), ("optix", None, {"CUDA": 1}), ("cuda", [3], {"CUDA": 2})],
)
def test_without_the_wanted_gpu_nothing_falls_back_to_the_cpu(
    wanted: str, gpus: list | None, present: dict
) -> None:
    with pytest.raises(program.RefusedError) as caught:
        worker(present)._choose_device(wanted, gpus)
    assert caught.value.code == "no-gpu"
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value)


def test_a_blender_built_without_optix_takes_cuda() -> None:
    made = worker({"CUDA": 1}, known=("NONE", "CUDA"))
    assert made._choose_device("gpu", None) == ("CUDA", ["GPU 0"])


def test_the_cpu_needs_no_preferences() -> None:
    assert program.Worker()._choose_device("cpu", None) == ("CPU", [])


def test_names_of_textures_are_those_of_windows_too() -> None:
    for path in (r"C:\x\wood.png", "//images/wood.png", "/abs/wood.png"):
        assert program._name_of(SimpleNamespace(filepath=path, name="")) == "wood.png"
