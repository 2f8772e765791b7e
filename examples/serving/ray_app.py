"""Replicas of a model on Ray Serve; see docs/deploy.md.

MODEL=llava-hf/llava-1.5-7b-hf serve run examples.serving.ray_app:app
"""

import os

from ray import serve

from paddle_llava.serving.api import create_app
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.server import open_service


def build() -> object:
    """The ASGI application of one replica, with a model of its own."""
    return create_app(open_service(os.environ["MODEL"], ServingLimits(), own_cache_size=False))


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=96)
@serve.ingress(build)
class Llava:
    """Ray's handle on it."""


app = Llava.bind()
