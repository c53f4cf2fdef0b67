"""The surfaces of OpenAI's API over one engine."""
