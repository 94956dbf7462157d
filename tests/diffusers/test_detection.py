"""Which spec and layout a file is of: every tiny model is its own spec's, whatever the file says, and nobody else's."""

import pytest

from qtransformers.archs.diffusion import ALL, LAYOUTS, SPECS
from qtransformers.gguf import GGUFFile
from qtransformers.gguf.header import DIFFUSION, DIMENSIONS, NAME_BYTES
from qtransformers.load.diffusion import detect, detected, is_diffusion, tensors_of
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import model_of, original_layout, settings, write

FILES = [(case, layout) for case in CASES for layout in LAYOUTS if layout == "diffusers" or case.original]
files = pytest.mark.parametrize("case, layout", FILES, ids=[f"{case.name}-{layout}" for case, layout in FILES])


def tensors(case, layout):
    model = model_of(case)
    state = model.state_dict()
    return state if layout == "diffusers" else original_layout(SPECS[case.id], settings(case, model), state)


@files
def test_a_file_has_the_marks_of_its_own_spec_and_layout_and_of_no_other(case, layout):
    shapes = {name: tuple(values.shape) for name, values in tensors(case, layout).items()}
    found = {
        (spec.id, there) for spec in ALL for there in LAYOUTS if any(m.found(shapes) for m in spec.marks.get(there, ()))
    }
    assert found == {(case.id, layout)}


@files
def test_what_a_file_says_of_itself_does_not_decide(case, layout, tmp_path):
    state, family = tensors(case, layout), SPECS[case.id].family
    # files that say they are of another kind may have no longer names and no more dimensions than llama.cpp allows
    small = max(map(len, state)) <= NAME_BYTES and max(v.ndim for v in state.values()) <= DIMENSIONS
    gguf = GGUFFile(write(tmp_path / "m.gguf", "no such thing" if small else case.id, state))
    assert is_diffusion(gguf)
    assert (detect(gguf).spec.id, detect(gguf).layout) == (case.id, layout)
    for said in ("no such thing", "", "pig", "cow", case.id, family or "llama", "flux", "sd3"):
        found = detected(tensors_of(gguf), str(gguf.path), said)
        assert (found.spec.id, found.layout) == (case.id, layout)
        warned = said not in ("", "pig", "cow", case.id, family, *SPECS[case.id].aliases)
        assert [f"general.architecture is {said!r}" in w for w in found.warnings] == [True] * warned


def test_the_reader_knows_all_architectures_with_long_names_and_videos():
    assert SPECS.keys() <= DIFFUSION
