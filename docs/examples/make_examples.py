"""Writes the example data of docs/finetuning.md beside itself; the same files every time.

    python docs/examples/make_examples.py

stories.jsonl      conversations: "Write a story about a cat." and a short story
preferences.jsonl  the same kind of request with two replies; the one with the kind ending is chosen
letters.jsonl      texts in a style of their own: letters from animals
"""

from __future__ import annotations

import json
import random
from pathlib import Path

ANIMALS = (
    "cat dog bear fox frog duck mouse rabbit horse goat hen owl pig sheep turtle bee "
    "squirrel cow wolf fish"
).split()
NAMES = "Tom Lily Max Anna Ben Mia Sam Rosie Jack Ella Tim Daisy Finn Lucy Leo Molly".split()
PLACES = (
    "the old barn,the green hill,the little pond,the apple tree,the dark wood,the big garden,"
    "the stone bridge,the sunny field"
).split(",")
THINGS = "red ball,blue hat,shiny bell,yellow kite,little drum,warm scarf,wooden boat".split(",")
REQUESTS = (
    "Write a story about a {animal}.",
    "Please write a story about a {animal}.",
    "Tell me a story about a {animal}.",
    "Can you tell me a story about a {animal}?",
)

# Each plot: how it begins and what goes wrong; a kind ending; an unkind one.
PLOTS = (
    (
        "Once upon a time there was a {animal} named {name}. {name} lived near "
        "{place} and had a {thing}. One day the {thing} was gone. {name} looked "
        "everywhere, and a small {other} came to help.",
        'They found the {thing} under a leaf. "Thank you, my friend!" said the '
        "{animal}. From that day on they played together every day.",
        'The {other} had taken the {thing}. "Go away!" said the {other}. The {animal}'
        " went home and cried, and nobody came.",
    ),
    (
        "There was once a {animal} called {name}, who was afraid of the dark. One "
        "night {name} heard a noise near {place}. It was a little {other} that had "
        "lost its way.",
        '"Do not cry," said the {animal}. "I will go with you." They walked home side'
        " by side, and {name} was not afraid any more.",
        "The {animal} ran away and shut the door. The little {other} was left alone "
        "in the dark, and {name} was as afraid as before.",
    ),
    (
        "One morning a {animal} named {name} went to {place}. There sat a {other} who"
        ' was very sad. "Why are you sad?" asked {name}. "I have no {thing}, and '
        'today is my birthday," said the {other}.',
        "So the {animal} gave away its own {thing}. The {other} smiled, and they ate "
        "a big cake together. It was the best day of all.",
        '"That is not my trouble," said the {animal} and went away. The {other} had '
        "no cake and no friend that day.",
    ),
    (
        "A young {animal} named {name} wanted to see what was behind {place}. It "
        "walked all day, and then the rain began. {name} was wet and cold. A kind "
        "{other} opened its door.",
        '"Come in and sit by the fire," said the {other}. The {animal} drank warm '
        "milk and told of its walk. In the morning the sun was out, and they were "
        "friends.",
        "The {animal} ate all the bread and broke the {thing} of its host. In the "
        "morning the {other} was sad, and {name} did not even say sorry.",
    ),
    (
        'Every day {name} the {animal} ran past {place} and shouted, "I am the '
        'fastest of all!" One day a slow old {other} said, "Let us race." The '
        "{animal} laughed. It ran and ran, and then it fell into a hole.",
        'The old {other} stopped and pulled it out. "You are fast," it said, "but two'
        ' are better than one." {name} said sorry, and they crossed the line '
        "together.",
        "The old {other} walked on and won. Nobody helped the {animal} out of the "
        "hole, and it had to stay there all night.",
    ),
    (
        "{name} was a {animal} with a {thing}. All the others wanted to play with it "
        'too, but {name} said, "No, it is mine!" So {name} played alone at {place}. '
        "Soon it was not fun any more. Then a {other} came by.",
        '"Do you want to play with me?" asked the {animal}. The {other} said yes, and'
        " soon all the others came. {name} was happy, because it is good to share.",
        '"Go away!" said the {animal}. The {other} went away, and all the others too.'
        " {name} was alone with the {thing} for ever.",
    ),
    (
        "In a house near {place} lived a {animal} whose name was {name}. {name} loved"
        ' to sing, but everybody said, "You sing too loud!" So {name} was quiet. One '
        "day a baby {other} could not sleep and cried and cried.",
        "Then the {animal} sang a soft song. The baby closed its eyes and slept. "
        '"Please sing for us every night," said all the animals.',
        '"Be quiet!" said the {animal} and closed the window. The baby cried all '
        "night, and nobody slept, and all were angry in the morning.",
    ),
    (
        "It was a cold winter, and the {animal} {name} had nothing to eat. At {place}"
        ' it met a {other} who had one last apple. "I am hungry too," said the '
        "{other}.",
        "They cut the apple in two and ate it under the {other}'s blanket. In the "
        "spring they planted the seeds, and there grew a tree for them both.",
        "The {animal} took the apple and ran. It ate it all alone. The {other} stayed"
        " hungry, and they never spoke again.",
    ),
)

OPENINGS = (
    "How are you? I am well.",
    "It rained today, but I did not mind.",
    "I think of you when the sun goes down.",
    "You will not believe what I saw.",
    "Thank you for your last letter.",
)
NEWS = (
    "This morning I found a {thing} near {place}. I asked every {other} if it was "
    "theirs, but nobody had lost it. So I keep it for you.",
    "Yesterday I walked to {place} and met a {other}. We talked until the moon came "
    "out, and we ate all my bread.",
    "I have a new house by {place}. It has one door and one window, and a {other} "
    "lives upstairs. The {other} sings too loud.",
    "Last night a {other} took my {thing}. I was angry. Then it brought the {thing} "
    "back with a flower in it, and I was not angry any more.",
    "I tried to fly from {place}. It did not work. My friend the {other} laughed, and"
    " then I laughed too.",
    "I am learning to swim in the rain water near {place}. The {other} says that I am"
    " brave. I say that I am wet.",
)
CLOSINGS = (
    "Please come soon. I will bake a cake.",
    "Write to me before the snow comes.",
    "Do not forget me.",
    "Give my love to the stars.",
    "I must stop now, because my candle is small.",
)


def story(rng: random.Random, animal: str) -> tuple[str, str, str]:
    """A beginning, a kind ending and an unkind one."""
    slots = {
        "animal": animal,
        "other": rng.choice([a for a in ANIMALS if a != animal]),
        "name": rng.choice(NAMES),
        "place": rng.choice(PLACES),
        "thing": rng.choice(THINGS),
    }
    begin, kind, unkind = (part.format(**slots) for part in rng.choice(PLOTS))
    return begin, kind, unkind


def letter(rng: random.Random) -> str:
    """A letter from one animal to another."""
    writer, reader, other = rng.sample(ANIMALS, 3)
    news = rng.choice(NEWS).format(other=other, place=rng.choice(PLACES), thing=rng.choice(THINGS))
    name = rng.choice(NAMES)
    return (
        f"Dear {reader},\n\n{rng.choice(OPENINGS)} {news}\n\n{rng.choice(CLOSINGS)}\n\n"
        f"Your {writer},\n{name}"
    )


def spell(text: str) -> str:
    """`text` with "an" where it belongs."""
    return text.replace(" a owl", " an owl").replace("A owl", "An owl")


def main() -> None:
    here = Path(__file__).parent
    rng = random.Random(1)
    conversations, preferences = [], []
    for number in range(200):
        animal = ANIMALS[number % len(ANIMALS)]
        request = spell(rng.choice(REQUESTS).format(animal=animal))
        begin, kind, unkind = map(spell, story(rng, animal))
        if number < 160:
            messages = [
                {"role": "user", "content": request},
                {"role": "assistant", "content": f"{begin} {kind}"},
            ]
            conversations.append({"messages": messages})
        begin, kind, unkind = map(spell, story(rng, animal))
        if number >= 100:
            preferences.append(
                {"prompt": request, "chosen": f"{begin} {kind}", "rejected": f"{begin} {unkind}"}
            )
    letters = [{"text": spell(letter(rng))} for _ in range(160)]
    for name, records in (
        ("stories.jsonl", conversations),
        ("preferences.jsonl", preferences),
        ("letters.jsonl", letters),
    ):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (here / name).write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
