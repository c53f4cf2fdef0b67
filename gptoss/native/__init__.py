"""The compiled core: `_core` (the engine), `_kernels` (tests), and the arrays of a step."""

from pkgutil import extend_path

# Run from a checkout, this folder hides the installed one, which holds the compiled modules.
__path__ = extend_path(__path__, __name__)
