"""The public path of the Ray Serve application: `serve run gptoss.server.ray_app:app`."""

from gptoss.server.front.ray_app import Arguments as Arguments
from gptoss.server.front.ray_app import app as app
from gptoss.server.front.ray_app import build_app as build_app
