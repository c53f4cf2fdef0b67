"""Grammars whose rules lead from one to the next, thousands deep: an answer or an Error, and never
the end of the process."""

import subprocess
import sys

import pytest
from waiting import WORK

pytest.importorskip("llguidance")

PROGRAM = """
import sys
from gptoss import Engine, Error, Grammar, SamplingParams

n = int(sys.argv[2])
refs = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(n)}

def schema(last, **more):
    return Grammar.json({"$ref": "#/$defs/a0", "$defs": {**refs, f"a{n}": last}}, **more)

def rules(mark, item=""):
    return "\\n".join(f"r{i}{mark} {item} r{i + 1}" for i in range(n)) + f"\\nr{n}{mark} "

make = {
    "schema": lambda: schema({"type": "null"}),
    "lenient": lambda: schema({"not": {}}, strict=False),
    "gbnf": lambda: Grammar.gbnf("root ::= (r0)*\\n" + rules(" ::=", '"x"') + 'root | "a"'),
    "lark": lambda: Grammar.lark("start: r0\\n" + rules(":") + '"a"'),
}[sys.argv[1]]
try:
    grammar = make()
    with Engine(kv_bytes=8 << 20, threads=1) as engine:
        engine.generate("Once", SamplingParams(max_tokens=2, grammar=grammar))
except Error as error:
    print("refused:", str(error)[:80])
print("alive")
"""


@pytest.mark.parametrize("depth", [10, 20_000])
@pytest.mark.parametrize("kind", ["schema", "lenient", "gbnf", "lark"])
def test_the_process_lives(kind, depth):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(depth)],
        capture_output=True, text=True, timeout=WORK,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("alive\n"), (done.returncode, done.stderr)
