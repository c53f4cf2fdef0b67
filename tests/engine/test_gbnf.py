"""llama.cpp's grammars: the same texts are allowed as there."""

import pytest

from gptoss import Error, Grammar
from gptoss.request import load_llguidance

llguidance = pytest.importorskip("llguidance")

JSON = r"""
# of llama.cpp's own examples in kind: an object, or parts of one
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
CHESS = """root ::= "1. " move " " move "\\n" ([1-9] [0-9]? ". " move " " move "\\n")+
move ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?
"""


@pytest.fixture(scope="module")
def bytewise():
    """A vocabulary of single bytes."""

    class Bytes:
        eos_token_id, bos_token_id = 256, None
        tokens = [bytes([i]) for i in range(256)] + [b"<end>"]
        special_token_ids = (256,)

        def __call__(self, text):
            return list(text.encode() if isinstance(text, str) else text)

    wrapper = llguidance.TokenizerWrapper(Bytes())
    return llguidance.LLTokenizer(wrapper, n_vocab=257)


def allows(tokenizer, source, text):
    matcher = load_llguidance().LLMatcher(tokenizer, Grammar.gbnf(source).source)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("source", "right", "wrong"),
    [
        ('root ::= "if" " " | [a-z]+', ["if ", "ifx", "i", "if"], ["if  ", "I", ""]),
        ('root ::= [^a-c\\n]', ["d", "-", "é", "😀"], ["a", "\n", ""]),
        ("root ::= .", ["a", "\n", "é"], ["", "ab"]),
        ('root ::= "a"{2,3} ("bc"){2}', ["aabcbc", "aaabcbc"], ["abcbc", "aabc", "aaaabcbc"]),
        ('root ::= "ab"{2}', ["abab"], ["ab", "abb"]),
        ('root ::= "a"{,2} "b"{1,}', ["b", "aab", "abbb"], ["aaab", "a"]),
        ('root ::= "\\x41\\u00e9\\U0001F600\\t\\"\\\\"', ['Aé😀\t"\\'], ["A"]),
        ('root ::= [\\]\\[-] | [a-]', ["]", "[", "-", "a"], ["\\", "b"]),
        ('root ::= one-two one-two?\none-two ::= "x" | ""', ["", "x", "xx"], ["xxx"]),
        ('root ::= (\n "a" # a comment\n | "b"\n)+ # more\n\n', ["ab", "b"], ["", "c"]),
        ('root ::= "a" |\n  "b"', ["a", "b"], ["ab"]),
        ('root ::= "(" root ")" | ""', ["", "(())"], ["(()"]),
        ('root ::= root "a" | "a"', ["aaa"], ["", "b"]),
        (JSON, ['{"a": [1, -2.5e1, {}], "ü": "\\u00e9\\n"}', "{}", '{\n  "a":null}'],
         ["[1]", '{"a": 01x}', '{"a":}', '{"a":tru}']),
        (CHESS, ["1. e4 e5\n2. Nf3 Nc6\n", "1. e4 O-O-O\n9. exd5 Qxa1+\n"],
         ["1. e4 e5", "1. e9 e5\n"]),
    ],
)  # fmt: skip
def test_the_same_texts(bytewise, source, right, wrong):
    for text in right:
        assert allows(bytewise, source, text), text
    for text in wrong:
        assert not allows(bytewise, source, text), text


@pytest.mark.parametrize(
    "source",
    [
        "",
        'start ::= "a"',
        "root ::= other",
        'root ::= "a',
        'root ::= ("a"',
        'root : "a"',
        "root ::= <[1000]>",
        'root ::= "\\q"',
        'root ::= "\\ud800"',
        "root ::= [z-a]",
        "root ::= [a",
        'root ::= "a"{3,2}',
        'root ::= "a"{99999}',
        'root ::= "a"{}',
        "root ::= " + "(" * 1000 + '"a"' + ")" * 1000,
        'root ::= "a" )',
        'root ::= "a" \x00',
        "root",
        "root ::= -",
    ],
)
def test_what_is_no_grammar(source):
    with pytest.raises(Error, match="gbnf: ") as found:
        Grammar.gbnf(source)
    assert found.value.field == "grammar"
