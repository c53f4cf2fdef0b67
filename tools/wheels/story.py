"""What the bundled model writes on every machine: in f32, the likeliest token each time."""

COMMAND = ["generate", "Once upon a time", "--max-tokens", "40", "--temperature", "0"]
COMMAND += ["--activation", "f32"]
TEXT = (
    ", there was a little girl named Lily. She loved to play with her toys and run around outside."
    " One day, she found a shiny coin in her room. It was so big and heavy"
)


def check_story(text: str, who: str) -> None:
    """Ends the program where `text`, which `who` wrote, is another."""
    if text.strip("\n") != TEXT:
        raise SystemExit(f"wheels: {who}: expected to read\n{TEXT}\nfound\n{text}")
