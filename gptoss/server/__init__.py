"""An HTTP server with the surface of OpenAI's API (the extra `serve`)."""
