"""Answer over HTTP with OpenAI's and Anthropic's APIs, until SIGTERM or Ctrl-C.

The first MODEL is loaded at once, others when they are asked for. Only this machine can reach the server, unless --host
says otherwise; then requests must bring one of the keys of --api-key-file."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtransformers.cli.flags import add_flags
from qtransformers.errors import ConfigError
from qtransformers.settings import PREFIX, flag_from_env

if TYPE_CHECKING:
    from qtransformers.serve import ModelSpec, ServerConfig
    from qtransformers.serve.painters import PainterSpec

LOADING = (
    "model-path", "ctx-size", "rope-scaling", "rope-base", "cache", "cache-tokens", "placement", "accuracy", "threads",
    "parallel", "pre", "prompt-format", "draft", "mlock", "preload", "stages",
)  # fmt: skip
SERVING = (
    "host", "port", "api-key-file", "allow-anyone", "allow-host", "allow-origin", "alias", "adapter", "queue", "per-key", "rate",
    "timeout", "drain", "keep-alive", "max-body", "max-answer", "max-choices", "allow-templates", "tool-parser", "reasoning-parser",
    "replicas", "base", "device", "offload",
)  # fmt: skip
OF_THE_FIRST = ("draft", "pre", "prompt_format", "stages")
# Flag -> field of Model.load, where both are not the same
FIELDS = {"ctx-size": "context_length"}
LIMITS = ("host", "port", "queue", "per_key", "rate", "timeout", "drain", "max_body", "max_answer", "max_choices")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, and the flags of loading and serving."""
    parser.add_argument("model", metavar="MODEL", nargs="+", help="a GGUF file or folder, `demo`, or user/repo:QUANT from the Hub; a diffusion transformer with --base")  # fmt: skip
    add_flags(parser, *LOADING, *SERVING)


def run(args: argparse.Namespace) -> int:
    """Listen until told to end."""
    from qtransformers.cli.models import fetched
    from qtransformers.cli.terminal import note, plain_warnings
    from qtransformers.serve.app import app_of
    from qtransformers.serve.models import Models
    from qtransformers.serve.painters import Painters
    from qtransformers.serve.run import log_to_stderr, serve
    from qtransformers.serve.running import announced, new_token
    from qtransformers.serve.server import Server

    config = server_config(args)
    names = names_of(args)
    painters = painter_specs(args, names)
    specs = model_specs(args, names)
    several = args.replicas and args.replicas > 1
    token, digest = new_token()
    if config.keys:
        config = replace(config, keys={**config.keys, "ps": digest})
    with plain_warnings(args.color), ExitStack() as stack:

        def ready(url: str) -> None:
            stack.enter_context(announced(url, token))
            note(
                greeting(url, specs[0].name if specs else None, setting_of(args, bool(config.keys))), "dim", args.color
            )

        for model in filter(None, (*(spec.reference for spec in specs[:1]), args.draft)):
            fetched(model, args.color)
        log_to_stderr()
        if several:
            _serve_replicas(args, config, specs, painters, ready)
        else:
            models = Models(specs, args.keep_alive, may_be_none=bool(painters))
            server = Server(models, config, Painters(painters, args.keep_alive))
            serve(server, ready, app_of(server))
    return 0


def _serve_replicas(
    args: argparse.Namespace,
    config: ServerConfig,
    specs: list[ModelSpec],
    painters: list[PainterSpec],
    ready: Callable[[str], None],
) -> None:
    """Several processes, and one that shares requests out among them."""
    from qtransformers.machine import usable_cores
    from qtransformers.serve.router import Router, routed
    from qtransformers.serve.run import serve
    from qtransformers.settings import Settings

    if args.stages:
        raise ConfigError("--replicas and --stages: one of several processes with all layers, one of several with some each. Leave one out.")  # fmt: skip
    if not args.threads and not Settings.from_env().threads:
        own = {"threads": max(1, usable_cores() // args.replicas)}
        specs = [replace(spec, options={**spec.options, **own}) for spec in specs]
    router = Router(specs, config, args.replicas, args.keep_alive, painters)
    serve(router, ready, routed(router))


def server_config(args: argparse.Namespace) -> ServerConfig:
    """What the flags and the environment say of limits and keys; ConfigError."""
    from qtransformers.serve.config import ServerConfig, checked_key, hashed, read_keys

    keys = read_keys(args.api_key_file) if args.api_key_file else {}
    key = flag_from_env("api-key")
    if key is not None:
        keys["environment"] = hashed(checked_key(PREFIX + "API_KEY", key))
    given: dict[str, Any] = {name: getattr(args, name) for name in LIMITS if getattr(args, name) is not None}
    return ServerConfig(
        **given,
        keys=keys,
        hosts=tuple(args.allow_host or ()),
        origins=tuple(args.allow_origin or ()),
        anyone=args.allow_anyone,
        templates=args.allow_templates,
    )


def names_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """The models and their aliases; ConfigError for an alias of none of them."""
    names: dict[str, list[str]] = {model: [] for model in args.model}
    for alias in args.alias or ():
        name, _, model = alias.partition("=")
        model = model or args.model[0]
        if model not in names:
            raise ConfigError(f"--alias {alias}: {model} is not served. It can be a name of {', '.join(names)}.")
        names[model].append(name)
    return names


def painter_specs(args: argparse.Namespace, names: dict[str, list[str]]) -> list[PainterSpec]:
    """The diffusion transformers, which are taken out of `names`; ConfigError where their pipeline is not told."""
    from pathlib import Path

    from qtransformers.cli.models import fetched
    from qtransformers.serve.painters import PainterSpec, paints

    found = []
    for model in list(names):
        path = model
        if args.base and not Path(model).exists() and model != "demo":
            path = str(fetched(model, args.color, judged=False))
        if not paints(path):
            continue
        if not args.base:
            raise ConfigError(f"{model} is a diffusion transformer. Pass --base, the folder or Hub id of the pipeline with its text encoders, VAE and scheduler.")  # fmt: skip
        options = {name: getattr(args, name) for name in ("base", "device", "offload", "accuracy")}
        options = {name: value for name, value in options.items() if value is not None}
        found.append(PainterSpec(path, tuple(names.pop(model)), options))
    return found


def model_specs(args: argparse.Namespace, names: dict[str, list[str]]) -> list[ModelSpec]:
    """The models that write, by their names."""
    from qtransformers.serve import ModelSpec

    options = {FIELDS.get(flag, flag.replace("-", "_")): getattr(args, flag.replace("-", "_")) for flag in LOADING}
    del options["model_path"]
    options = {name: value for name, value in options.items() if value not in (None, False)}
    loras: dict[str, str] = {}
    for adapter in args.adapter or ():
        name, equals, path = adapter.partition("=")
        if not equals or not name or not path or name in loras:
            raise ConfigError(f"--adapter {adapter}: expected NAME=PATH, each name once.")
        loras[name] = path
    specs = []
    for i, (model, its) in enumerate(names.items()):
        more: dict[str, Any] = {"model_path": args.model_path, "loras": loras, "options": options}
        more |= {"tool_parser": args.tool_parser, "reasoning_parser": args.reasoning_parser}
        if i:
            more = {"options": {name: value for name, value in options.items() if name not in OF_THE_FIRST}}
        specs.append(ModelSpec(model, tuple(its), **more))
    return specs


def setting_of(args: argparse.Namespace, keys: bool) -> str | None:
    """A shell's line that sets QTRANSFORMERS_API_KEY to a key of the file; "" where it is set, None where no key is asked for."""
    if not keys:
        return None
    if not args.api_key_file or flag_from_env("api-key") is not None:
        return ""
    file = shlex.quote(str(Path(args.api_key_file).expanduser().resolve()))
    return f"export {PREFIX}API_KEY=$(sed 's/#.*//' {file} | awk 'NF {{print $NF; exit}}')"


def greeting(url: str, model: str | None, setting: str | None) -> str:
    """Where the server is, and two ways of asking a model that writes; `setting` as of `setting_of`."""
    if model is None:
        return f"listening at {url}\n  a page to paint with; POST {url}/v1/images/generations"
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Tell me a story."}]})
    quoted = body.replace("'", "'\\''")
    name = PREFIX + "API_KEY"
    key = "" if setting is None else f' -H "Authorization: Bearer ${name}"'
    imports, own = ("", '"none"') if setting is None else ("  import os\n", f'os.environ["{name}"]')
    first = f"  {setting}\n" if setting else ""
    return f"""listening at {url}
  a page to chat with, in a browser

{first}  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{quoted}'

{imports}  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key={own})
  answer = client.chat.completions.create(model={json.dumps(model)}, messages=[{{"role": "user", "content": "Tell me a story."}}])
  print(answer.choices[0].message.content)
"""
