"""The GGUF models in the Hugging Face cache: what every verb takes as MODEL, their size and age."""

from __future__ import annotations

import argparse
import json
import sys
import time

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, printable, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No operands."""
    add_flags(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Print the models on stdout; downloads that were interrupted on stderr."""
    from qtransformers.load.cached import models, unfinished
    from qtransformers.load.files import size_text
    from qtransformers.load.hub import cache_folder, the_hub

    hub = the_hub()
    found = models(hub)
    if args.json:
        rows = [{"model": m.name, "commit": m.commit, "bytes": m.nbytes, "files": [str(p) for p in m.files], "modified": m.modified} for m in found]  # fmt: skip
        json.dump(rows, sys.stdout, indent=2)
        print()
        return 0
    day = "%Y-%m-%d"
    lines = [(m.name, size_text(m.nbytes), time.strftime(day, time.localtime(m.modified)), m.commit[:8]) for m in found]
    if lines:
        print("\n".join(map(printable, table([("model", "size", "fetched", "commit"), *lines], right=(1,)))))
    else:
        note(f"{cache_folder(hub)} holds no GGUF model. To fetch one: qtransformers pull user/repo:QUANT")
    for repo, n in unfinished(hub).items():
        note(f"{repo}: {size_text(n)} of an interrupted download; pull it again to go on, or: qtransformers rm {repo}")
    return 0
