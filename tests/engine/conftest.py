"""Makes the helpers beside the engine tests importable: `from fake_backend import …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
