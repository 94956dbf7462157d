"""/v1/images/generations with a whole tiny AuraFlow, by OpenAI's client and by hand."""

import argparse
import asyncio
import base64
import io
import json

import httpx2 as httpx
import numpy as np
import openai
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
from PIL import Image

from qtransformers.cli import main, serve
from qtransformers.diffusers import Picture, load_pipeline, paint
from qtransformers.errors import InsufficientMemoryError
from qtransformers.gguf import GGUFFile
from qtransformers.load.diffusion_fit import outlook
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.painters import MAX_SIDE, Painter, PainterSpec, paints, peak_bytes
from servers import PATIENCE, replicated, running
from tiny_diffusion.files import write
from tiny_diffusion.pipelines import saved

WISH = {"prompt": "a red fox in the rain", "size": "32x16", "steps": 2, "guidance_scale": 3.5, "seed": 1}


@pytest.fixture(scope="module")
def aura(tmp_path_factory):
    """A GGUF file, and the pipeline's folder."""
    folder = tmp_path_factory.mktemp("aura")
    pipe, base = saved(folder / "base")
    return str(write(folder / "aura.gguf", "aura", pipe.transformer.state_dict(), "Q4_K")), str(base)


@pytest.fixture(scope="module")
def gallery(aura, demo):
    """The URL of a server that writes and paints, and the server."""
    path, base = aura
    with running(
        [demo], ServerConfig(port=0, queue=1), painters=[PainterSpec(path, ("aura",), {"base": base})]
    ) as found:
        yield found


def picture(b64):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def test_the_picture_is_the_library_s(gallery, aura):
    expected = paint(load_pipeline(aura[0], aura[1]), Picture("a red fox in the rain", steps=2, width=32, height=16, guidance=3.5, seed=1))  # fmt: skip
    with openai.OpenAI(base_url=f"{gallery[0]}/v1", api_key="none", max_retries=0) as client:
        extra = {"steps": 2, "guidance_scale": 3.5, "seed": 1}
        got = client.images.generate(model="aura", prompt=WISH["prompt"], size="32x16", extra_body=extra)
    [image] = got.data
    assert picture(image.b64_json).shape == (16, 32, 3)
    assert np.array_equal(picture(image.b64_json), np.asarray(expected.images[0]))
    assert got.model_dump()["seed"] == 1


def test_a_stream_tells_of_each_step_and_ends_with_the_same_picture(gallery):
    url = f"{gallery[0]}/v1/images/generations"
    whole = httpx.post(url, json=WISH | {"model": "aura"}, timeout=60).json()
    text = httpx.post(url, json=WISH | {"model": "aura", "stream": True}, timeout=60).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [(e["step"], e["steps"]) for e in events[:-1]] == [(1, 2), (2, 2)]
    assert events[-1]["type"] == "image_generation.completed" and events[-1]["b64_json"] == whole["data"][0]["b64_json"]
    assert text.endswith("data: [DONE]\n\n")
    with openai.OpenAI(base_url=f"{gallery[0]}/v1", api_key="none", max_retries=0) as client:
        stream = client.images.generate(model="aura", prompt=WISH["prompt"], size="32x16", stream=True, extra_body={"steps": 2, "guidance_scale": 3.5, "seed": 1})  # fmt: skip
        assert [e.type for e in stream] == ["image_generation.progress"] * 2 + ["image_generation.completed"]


def test_several_and_other_formats(gallery):
    got = httpx.post(f"{gallery[0]}/v1/images/generations", json=WISH | {"model": "aura", "n": 2, "output_format": "jpeg"}, timeout=60).json()  # fmt: skip
    first, second = (base64.b64decode(d["b64_json"]) for d in got["data"])
    assert first[:3] == second[:3] == b"\xff\xd8\xff" and first != second


@pytest.mark.parametrize(
    "given, field",
    [
        ({"prompt": " "}, "prompt"), ({"size": "32"}, "size"), ({"size": f"{MAX_SIDE + 16}x32"}, "size"), ({"size": "0x0"}, "size"), ({"size": "33x32"}, "width"),
        ({"steps": 0}, "steps"), ({"steps": 10**9}, "steps"), ({"n": 99}, "n"), ({"n": 0}, "n"), ({"seed": -1}, "seed"), ({"guidance_scale": -1}, "guidance"),
        ({"response_format": "url"}, "response_format"), ({"output_format": "bmp"}, "output_format"), ({"steps": "2"}, "steps"), ({"wide": 1}, "wide"),
        ({"seed": 10**30}, "seed"), ({"prompt": 1}, "prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(gallery, given, field):
    got = httpx.post(f"{gallery[0]}/v1/images/generations", json=WISH | {"model": "aura"} | given, timeout=60)
    assert got.status_code == 400 and field in got.json()["error"]["message"]


def test_models_say_who_paints_and_who_writes(gallery):
    kinds = {m["id"]: m["qtransformers"] for m in httpx.get(f"{gallery[0]}/v1/models").json()["data"]}
    assert kinds["demo"]["kind"] == "language" and kinds["aura"]["kind"] == "diffusion"
    assert kinds["aura"]["images"]["max"] == {"width": MAX_SIDE, "height": MAX_SIDE, "steps": 200}
    assert httpx.get(f"{gallery[0]}/v1/models/aura").json()["qtransformers"]["kind"] == "diffusion"
    url = f"{gallery[0]}/v1"
    assert httpx.post(f"{url}/images/generations", json=WISH | {"model": "demo"}).status_code == 404
    said = httpx.post(f"{url}/chat/completions", json={"model": "aura", "messages": [{"role": "user", "content": "x"}]})
    assert said.status_code == 404


def test_who_goes_away_stops_the_work_and_who_waits_too_long_is_told(gallery):
    url, server = gallery
    painter = server.painters.names["aura"]
    long = WISH | {"model": "aura", "steps": 200, "stream": True}
    with httpx.stream("POST", f"{url}/v1/images/generations", json=long, timeout=60) as first:
        lines = first.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        with httpx.stream("POST", f"{url}/v1/images/generations", json=long, timeout=60):
            full = httpx.post(f"{url}/v1/images/generations", json=WISH | {"model": "aura"}, timeout=60)
            assert full.status_code == 503 and int(full.headers["retry-after"]) >= 1
    again = httpx.post(f"{url}/v1/images/generations", json=WISH | {"model": "aura"}, timeout=30)
    assert again.status_code == 200 and painter.waiting == 0


def test_one_of_several_processes_paints(gallery, aura, demo):
    path, base = aura
    expected = httpx.post(f"{gallery[0]}/v1/images/generations", json=WISH | {"model": "aura"}, timeout=60).json()
    with replicated([demo], painters=[PainterSpec(path, ("aura",), {"base": base})]) as (url, router):
        got = httpx.post(f"{url}/v1/images/generations", json=WISH | {"stream": True}, timeout=PATIENCE).text
        events = [json.loads(line[6:]) for line in got.splitlines() if line.startswith("data: {")]
        assert [e.get("step") for e in events] == [1, 2, None]
        assert events[-1]["b64_json"] == expected["data"][0]["b64_json"]
        assert httpx.post(f"{url}/v1/images/generations", json=WISH | {"model": "aura"}, timeout=60).json()["data"] == expected["data"]  # fmt: skip

        async def states():
            told = [json.loads((await r.get("/v1/models/aura"))[1]) for r in router.replicas]
            return sorted(model["state"] for model in told)

        assert asyncio.run(states()) == ["ready", "unloaded"]
        said = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        assert httpx.post(f"{url}/v1/chat/completions", json=said, timeout=60).status_code == 200


def test_what_does_not_fit_is_refused_with_both_numbers(aura):
    path, base = aura
    painter = Painter(PainterSpec(path, ("aura",), {"base": base}), free=lambda: 10)
    with pytest.raises(InsufficientMemoryError, match=r"take [\d,]+ bytes; 10 are free"):
        asyncio.run(painter.paint({"prompt": "x"}, lambda step, steps: None))
    pipe = load_pipeline(path, base)
    found = outlook(GGUFFile(path))
    assert peak_bytes(pipe, found, 64 * 32) == found.temporaries(2 * (8 + 512)) > 64 * 32 * 4 * 3 * 32
    assert peak_bytes(pipe, found, 2048 * 2048) >= 2048 * 2048 * 4 * 3 * 32
    painter.pipe, painter._free = pipe, lambda: 10
    with pytest.raises(InsufficientMemoryError, match=r"about [\d,]+ bytes while they are painted; 10 are free"):
        asyncio.run(painter.paint({"prompt": "x"}, lambda step, steps: None))
    painter.close()


def test_files_are_told_apart(aura, data):
    assert paints(aura[0]) and not paints(str(data / "demo-Q8_0.gguf")) and not paints("nowhere.gguf")


def test_the_command_serves_it_alone_and_asks_for_its_pipeline(aura, capsys):
    path, base = aura
    assert main(["serve", path]) == 2
    assert "Pass --base" in capsys.readouterr().err
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    args = parser.parse_args(["demo", path, "--base", base, "--alias", f"fox={path}", "--port", "0"])
    names = serve.names_of(args)
    [painter] = serve.painter_specs(args, names)
    assert painter.names == ("fox",) and painter.options["base"] == base
    assert [spec.name for spec in serve.model_specs(args, names)] == ["demo"]
    with running([], painters=[painter]) as (url, _):
        assert httpx.get(f"{url}/health").json() == {"status": "ready"}
        assert httpx.post(f"{url}/v1/images/generations", json=WISH, timeout=60).status_code == 200
        said = httpx.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
        assert said.status_code == 404 and "no model of this server writes" in said.json()["error"]["message"]
