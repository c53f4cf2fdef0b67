"""The public path of the Ray Serve application: `serve run gptoss.server.ray_app:app`."""

from gptoss.server.front.ray_app import app as app
