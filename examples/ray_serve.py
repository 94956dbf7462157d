"""The server under Ray Serve: replicas on one machine or many, requests shared out among them, failed ones replaced.

usage: ray_serve.py [MODEL [REPLICAS [PORT]]], with pip install 'qtransformers[ray]'; or `serve run examples.ray_serve:build model=... replicas=4`
"""

import sys

from ray import serve

from qtransformers.serve import ModelSpec, ServerConfig, app

PARALLEL, QUEUE = (
    4,
    16,
)  # answers that a replica computes at a time, and that may wait for one; more are refused with 503


def build(args):
    """The application, as `serve run` and Serve's config files take it."""
    options = {"parallel": PARALLEL, "threads": int(args.get("threads", 1))}
    specs = [ModelSpec(args.get("model", "demo"), options=options)]
    config = ServerConfig(hosts=("*",), anyone=True)  # whoever reaches Ray's proxy may ask; keys=... asks for one
    deployment = serve.deployment(serve.ingress(lambda: app(specs, config))())
    return deployment.options(
        name="qtransformers",
        num_replicas=int(args.get("replicas", 2)),
        max_ongoing_requests=2 * PARALLEL,
        max_queued_requests=int(args.get("queue", QUEUE)),
        health_check_period_s=5,
        ray_actor_options={"num_cpus": options["threads"]},
    ).bind()


if __name__ == "__main__":
    given = dict(zip(("model", "replicas", "port"), sys.argv[1:], strict=False))
    serve.start(http_options={"port": int(given.pop("port", 8000))})
    serve.run(build(given), name="qtransformers", route_prefix="/", blocking=True)
