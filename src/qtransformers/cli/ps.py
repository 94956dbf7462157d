"""The servers that run on this machine for this user: their models, what they do, memory; exit code 1 where there is none."""

from __future__ import annotations

import argparse
import json
import sys

from qtransformers.cli.flags import add_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing but how to print."""
    add_flags(parser, "json")


def run(args: argparse.Namespace) -> int:
    """Print a line for each model of each server."""
    from qtransformers.cli.terminal import note, printable, table
    from qtransformers.load.files import memory_text
    from qtransformers.serve.running import servers

    found = servers()
    if args.json:
        json.dump([vars(server) for server in found], sys.stdout, indent=2)
        print()
    elif found:
        rows = [("server", "model", "state", "running", "waiting", "memory")]
        for server in found:
            memory = memory_text(server.memory) if server.memory else ""
            models = server.models if server.models is not None else [{"name": "", "state": "does not answer"}]
            for m in models:
                rows.append(
                    (server.url, m["name"], m["state"], str(m.get("running", "")), str(m.get("waiting", "")), memory)
                )
        print("\n".join(map(printable, table(rows, right=(3, 4)))))
    else:
        note("No server runs here. Start one: qtransformers serve demo", color=args.color)
    return 0 if found else 1
