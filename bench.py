"""How fast a model runs here, beside what the machine allows and beside a peer: see bench/model.py.

python bench.py --model synthetic:gpt-oss-20b --weights q8 --prefill 512 --decode 64
python bench.py serve --requests 64     # a server under load: see bench/serve.py
"""

import sys

from bench.model import main

if __name__ == "__main__":
    sys.exit(main())
