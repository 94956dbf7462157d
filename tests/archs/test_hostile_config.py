"""A wrong value in config.json, whatever the architecture and the key: errors of ours that name the file, never a crash."""

import json
import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import transformers

from archs.cases import CASES
from archs.encoders import ENCODERS
from archs.models import DEFAULTS, TOKENS
from qtransformers.archs import ALL, SPECS
from qtransformers.archs.hparams import read_hparams
from qtransformers.convert.checkpoints import hparam_metadata
from qtransformers.errors import LoadError, UnsupportedError
from qtransformers.load.config import disagreements, hparams_from_config, spoken

HOSTILE = (0, -1, 2**31, 2**63, 0.5, math.nan, math.inf, -math.inf, "", "x", True, None, [], [1, 2], {}, {"a": 1})
ONE_EACH = {case.model: case for case in (*CASES.values(), *ENCODERS.values())}  # by transformers' class
SIZES = ("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head")


def config_of(case):
    """What transformers writes of a case, and its spec."""
    sizes = DEFAULTS if case.defaults else {key: DEFAULTS[key] for key in TOKENS}
    config = getattr(transformers, f"{case.model}Config")(**{**sizes, **case.config})
    return json.loads(config.to_json_string(use_diff=False)), SPECS[case.arch]


def test_every_architecture_has_a_case():
    assert {case.arch for case in ONE_EACH.values()} == {spec.id for spec in ALL}


@pytest.mark.parametrize("name", ONE_EACH)
def test_of_a_checkpoint_and_beside_a_file_that_says_less(name):
    """Alone, and where a GGUF file leaves just that hyperparameter to config.json."""
    config, spec = config_of(ONE_EACH[name])
    sound = hparams_from_config(spec, config, "config.json")
    keys = {p.name: f"{spec.id}.{p.key}" for p in spec.hparams}
    metadata = {"general.architecture": spec.id, **hparam_metadata(spec, sound)}
    refused = set()
    for key in config:
        for value in HOSTILE:
            wrong = config | {key: value}
            try:
                hparams_from_config(spec, wrong, "config.json")
            except (LoadError, UnsupportedError) as e:
                assert str(e).startswith("config.json"), (key, value)
                refused.add((key, str(value)))
            said, problems = spoken(spec, wrong, "config.json")
            gone = {keys[name] for name, s in said.items() if s.value is None}
            h, more = read_hparams(spec, "m.gguf", {k: v for k, v in metadata.items() if k not in gone}, config=said)
            list(disagreements(spec, h, "m.gguf", spec.id, said, wrong, "config.json"))
            grave = [p.text for p in (*problems, *more) if p.grade != "warning"]
            assert not gone or grave, (key, value)
    assert {(key, "0") for key in SIZES if key in config} <= refused and len(refused) > 60
