"""A parser driven token by token, and what is true of every answer."""

from byte_vocabulary import WORDS

from gptoss.chat import HarmonyParser, Message


def take(written, words=WORDS, continues=False):
    """(messages, what ended each) of text or tokens; the pieces are checked against them."""
    tokens = words.encode(written) if isinstance(written, str) else written
    parser = HarmonyParser(
        words, Message("assistant", "final", content="so ") if continues else None
    )
    pieces = [piece for token in tokens for piece in parser.push(token)]
    pieces += parser.finish()
    check_pieces(pieces, parser.messages)
    return parser.messages, [piece.ended_by for piece in pieces if piece.ends]


def check_pieces(pieces, messages):
    assert sorted(pieces, key=lambda piece: piece.number) == pieces
    for number, message in enumerate(messages):
        mine = [piece for piece in pieces if piece.number == number]
        assert "".join(piece.text for piece in mine) == message.content
        assert [piece.begins for piece in mine] == [True] + [False] * (len(mine) - 1)
        assert [piece.ends for piece in mine] == [False] * (len(mine) - 1) + [True]
        assert all(piece.ended_by is None for piece in mine[:-1])
        for piece in mine:
            assert piece.message.content == ""
            assert fields(piece.message) == fields(message)
    assert {piece.number for piece in pieces} == set(range(len(messages)))


def fields(message):
    return (message.author, message.channel, message.recipient, message.content_type)
