"""Grammars in GBNF: the language is the one that a plain matcher of characters finds."""

import random
import re

import pytest

from gptoss import Error, Grammar
from gptoss.request.gbnf import _Parser, lark_of
from gptoss.request.grammar import parser_limits

llguidance = pytest.importorskip("llguidance", reason="the extra grammar is missing")
BYTES = llguidance.LLTokenizer("byte")
_CODE = re.compile(r"\\x\{([0-9a-f]+)\}")


def accepts(source, text):
    grammar = llguidance.LLMatcher.grammar_from_lark(Grammar.gbnf(source).source)
    matcher = llguidance.LLMatcher(BYTES, grammar, log_level=0, limits=parser_limits(llguidance))
    for byte in text.encode():
        if matcher.is_stopped() or not matcher.try_consume_tokens([byte]):
            return False
    return matcher.is_accepting()


class Plain:
    """Where a part of a rule may end that begins at some place, by trying everything."""

    def __init__(self, source, text):
        self.rules, self.text, self.memo = _Parser(source).rules(), text, {}

    def matches(self):
        return len(self.text) in self.ends(self.rules["root"], 0)

    def ends(self, node, at):
        key = id(node), at
        if key not in self.memo:
            self.memo[key] = set()
            while not (found := self.new(node, at)) <= self.memo[key]:
                self.memo[key] |= found
        return self.memo[key]

    def new(self, node, at):
        if node.kind == "set":
            pattern = _CODE.sub(lambda m: f"\\U{int(m[1], 16):08x}", node.text)
            here = self.text[at : at + 1]
            return {at + 1} if here and re.fullmatch(pattern, here, re.S) else set()
        if node.kind == "ref":
            return set(self.ends(self.rules[node.text], at))
        if node.kind == "alt":
            return {end for part in node.parts for end in self.ends(part, at)}
        if node.kind == "seq":
            places = {at}
            for part in node.parts:
                places = {end for place in places for end in self.ends(part, place)}
            return places
        places, found = {at}, {at} if node.least == 0 else set()
        most = len(self.text) + node.least + 1 if node.most is None else node.most
        for count in range(1, most + 1):
            places = {end for place in places for end in self.ends(node.parts[0], place)}
            found |= places if count >= node.least else set()
        return found


def part(chance, depth, names):
    kind = chance.random()
    if depth == 0 or kind < 0.35:
        return chance.choice(['"a"', '"ab"', '"b"', "[ab]", "[^a]", '"ba"', '"c"', '"\\x61"'])
    if kind < 0.5 and names:
        return chance.choice(names)
    inner = part(chance, depth - 1, names)
    if kind < 0.7:
        return f"({inner} {part(chance, depth - 1, names)})"
    if kind < 0.85:
        return f"({inner} |\n {part(chance, depth - 1, names)})"
    return f"({inner}){chance.choice(['*', '+', '?', '{1,2}', '{2}', '{0,3}', '{1,}'])}"


@pytest.mark.parametrize("seed", range(60))
def test_any_grammar(seed):
    """Also with rules that lead back to themselves, and terminals that begin alike."""
    chance = random.Random(seed)
    source = (
        f'# of all kinds\nroot ::= {part(chance, 3, ["x", "y-z"])} "c"?  # the end\n'
        f"x ::= {part(chance, 2, ['y-z'])}\n\n"
    )
    back = '"a" (y-z | x)? "b" | "ab"' if seed % 2 else part(chance, 2, [])
    source += f"y-z ::= {back}"
    for _ in range(30):
        text = "".join(chance.choice("abc") for _ in range(chance.randint(0, 7)))
        assert accepts(source, text) == Plain(source, text).matches(), (source, text)


@pytest.mark.parametrize(
    ("source", "fits", "fits_not"),
    [
        ('root ::= "say \\"hi\\"\\n"', ['say "hi"\n'], ["say hi"]),
        ("root ::= [a-c\\]\\\\-]+", ["ab]\\-"], ["d"]),
        ("root ::= [^\\n]+ | .", ["aé日😀", "\n"], ["a\nb", ""]),
        ('root ::= "\\u65e5" [\\U0001F600-\\U0001F64F]', ["日😀"], ["日"]),
        ("root ::=", [""], ["a"]),
        ('root ::= "a" |', ["a", ""], ["b"]),
        ('root ::= x\nx ::= "b"\nx ::= "a"', ["a"], ["b"]),
        ('root ::= "a/b" "/"', ["a/b/"], ["ab"]),
        ('root ::= ("(" root ")")*', ["(())()", ""], ["(()", ")("]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["a"]),
    ],
)
def test_what_it_says(source, fits, fits_not):
    assert all(accepts(source, text) for text in fits)
    assert not any(accepts(source, text) for text in fits_not)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "expected a rule named root, found none"),
        ('x ::= "a"', "expected a rule named root, found x"),
        ("root ::= x", "rule 'root' names 'x', which is no rule"),
        ('root "a"', "line 1: expected ::="),
        ('root ::= "a', "expected the end of a literal"),
        ("root ::= [a", "expected the end of a literal or a class"),
        ('root ::= ("a"', r"expected \)"),
        ('root ::= "a")', "expected the end of a line"),
        ("root ::= [z-a]", "expected a range in order"),
        ('root ::= "\\q"', "expected an escape"),
        ('root ::= "\\x4"', "expected an escape"),
        ('root ::= "\\ud800"', "expected an escape of a character"),
        ('root ::= "a"{3,2}', "expected repetitions in order"),
        ('root ::= "a"{1,9999}', "expected at most 2000 repetitions"),
        ("root ::= <[100]>", "names tokens"),
        ("root ::= <|end|>", "names tokens"),
        ("root ::= []", r"expected characters in \[\]"),
        ("root ::= " + "(" * 1000 + '"a"' + ")" * 1000, "at most 200 deep"),
        (5, "expected a string"),
    ],
)
def test_what_is_none(source, message):
    with pytest.raises(Error, match=message) as caught:
        Grammar.gbnf(source)
    assert caught.value.field == "grammar" and len(str(caught.value)) < 600


def test_long_ones_in_bounded_time():
    """Rules within rules that would double at each level stay rules."""
    lines = [f'r{i} ::= r{i + 1} r{i + 1} "{i}"' for i in range(40)]
    source = "root ::= r0\n" + "\n".join(lines) + '\nr40 ::= "a"'
    assert len(lark_of(source)) < 10_000
    chain = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(5000)) + "r5000 ::= [a]"
    assert len(lark_of(chain)) < 500_000
