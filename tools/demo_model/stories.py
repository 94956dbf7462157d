"""An endless corpus of small stories and plain questions, for training the demo model.

Every text is composed here from the lists of words.py; nothing is copied from anywhere.
`documents(seed)` yields (kind, user, assistant) tuples; kind "text" has no user turn.
"""

import random
import sys
from itertools import islice

from words import ANIMALS, COLOURS, DAYS, MONTHS, MORALS, NAMES, OBJECTS, OPPOSITES, PLACES, SHE, TRAITS, WEATHER


def a(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def cap(text):
    return text[0].upper() + text[1:]


class Hero:
    def __init__(self, r, animal=None, name=None, trait=None):
        self.animal = animal or r.choice(list(ANIMALS))
        self.name = name or r.choice(NAMES)
        self.trait = trait or r.choice(list(TRAITS))
        she = self.name in SHE
        self.he, self.him, self.his = ("she", "her", "her") if she else ("he", "him", "his")
        self.sound, self.home, self.food, _, _ = ANIMALS[self.animal]


def opening(r, h, place):
    return (
        r.choice(
            [
                f"Once upon a time there was {a(h.trait)} {h.animal} named {h.name}.",
                f"Once there lived {a(h.trait)} {h.animal} called {h.name} near the {place}.",
                f"Long ago, by the {place}, lived {a(h.animal)} named {h.name}. {h.name} was very {h.trait}.",
                f"{h.name} was {a(h.trait)} {h.animal} who lived near the {place}.",
            ]
        )
        + " "
        + r.choice(
            [
                f"{cap(h.he)} {TRAITS[h.trait]}.",
                f"{h.name} lived in {'the' if h.animal in ('whale', 'lion', 'elephant', 'penguin') else 'a'} {h.home} and loved to eat {h.food}.",
                f"Every day {h.he} ate {h.food} and walked to the {place}.",
                f"Everyone near the {place} knew {h.him}, because {h.he} {TRAITS[h.trait]}.",
            ]
        )
    )


def lost(r, h, f, o, place):
    p2 = r.choice([p for p in PLACES if p != place])
    return [
        f"{r.choice(WEATHER)}, {h.name} could not find {h.his} {o}. The {o} {OBJECTS[o]}, and {h.he} loved it very much.",
        r.choice(
            [
                f"{cap(h.he)} looked under the bed and behind the door, but the {o} was not there.",
                f"{cap(h.he)} searched all over the {place}, but there was no {o}.",
                f'"Where is my {o}?" cried {h.name}. Nobody answered.',
            ]
        ),
        f'Then {f.name} the {f.animal} came along. "Why are you so sad?" asked {f.name}.',
        f'"I have lost my {o}," said {h.name}. "I will help you look for it," said {f.name}.',
        r.choice(
            [
                f"Together they walked to the {p2}. {f.name} looked high and {h.name} looked low.",
                f"They followed small footprints all the way to the {p2}.",
            ]
        ),
        r.choice([f"There, under a pile of leaves, was the {o}!", f"And there, beside a grey stone, lay the {o}!"]),
        f"{h.name} was so happy that {h.he} gave {f.name} some {h.food}.",
    ], "help"


def share(r, h, f, o, place):
    return [
        f"{r.choice(WEATHER)}, {h.name} found {a(o)} near the {place}. It {OBJECTS[o]}.",
        f'"This is mine, and only mine," said {h.name}, and {h.he} hid it in {h.his} {h.home}.',
        f'Soon {f.name} the {f.animal} came by. "May I see your {o}?" asked {f.name}.',
        r.choice(
            [
                f'"No," said {h.name}. {f.name} went away without a word.',
                f"{h.name} shook {h.his} head, and {f.name} left with a sad face.",
            ]
        ),
        f"That night {h.name} looked at the {o}, but it was no fun to be alone with it.",
        f'In the morning {h.he} ran to {f.name}. "I am sorry," {h.he} said. "Let us enjoy the {o} together."',
        r.choice(
            ["They laughed and played until the sun went down.", f"From that day on the {o} belonged to both of them."]
        ),
    ], "share"


def journey(r, h, f, o, place):
    p2 = r.choice([p for p in PLACES if p != place])
    return [
        f"{h.name} had one big dream: {h.he} wanted to see the {p2}.",
        f"{r.choice(WEATHER)}, {h.he} packed {a(o)} and some {h.food} and set off from the {place}.",
        f'The road was long, and soon {h.his} feet were tired. "It is too far," said {h.name}.',
        f'Just then {f.name} the {f.animal} passed by. "One step, and then one more," said {f.name}. "That is how I do it."',
        f"So {h.name} took one step, and then one more. When it grew dark, {h.he} remembered the {o}. It {OBJECTS[o]}, and that gave {h.him} courage.",
        f"On the third day {h.he} saw the {p2} at last. It was more beautiful than any dream.",
    ], "patience"


def truth(r, h, f, o, place):
    return [
        f"{r.choice(WEATHER)}, {h.name} was playing near the {place} and broke {f.name}'s {o} by accident.",
        f"{h.name} was afraid. {cap(h.he)} hid the broken {o} behind a bush.",
        f'Later {f.name} the {f.animal} asked, "Have you seen my {o}?"',
        r.choice(
            [
                f'"No," said {h.name}, but {h.his} heart felt heavy as a stone.',
                f"{h.name} looked at the ground and said nothing. {cap(h.his)} heart beat fast.",
            ]
        ),
        f"All night {h.he} could not sleep. In the morning {h.he} went to {f.name} and told the truth.",
        f'"Thank you for telling me," said {f.name}. "We can mend it together."',
        f"By noon the {o} was as good as new, and {h.name} felt happy again.",
    ], "honest"


def rescue(r, h, f, o, place):
    return [
        f"{r.choice(WEATHER)}, {h.name} heard a cry near the {place}. It was {f.name} the {f.animal}!",
        r.choice(
            [
                f"{f.name} had fallen into a deep hole and could not climb out.",
                f"{f.name} was stuck in the mud and could not move.",
            ]
        ),
        f'"Help me, please!" called {f.name}. {h.name} was afraid, but {h.he} did not run away.',
        f"{cap(h.he)} had {a(o)} with {h.him}. It {OBJECTS[o]}.",
        r.choice(
            [
                f"{h.name} used the {o} to call all the neighbours, and together they pulled {f.name} out.",
                f"{h.name} held out the {o}, {f.name} took it, and {h.name} pulled as hard as {h.he} could.",
            ]
        ),
        f'"You saved me!" said {f.name}. After that day the two were best friends.',
    ], "brave"


def gift(r, h, f, o, place):
    return [
        f"It was {f.name}'s birthday. {f.name} was {a(f.animal)} who lived close to the {place}.",
        f"{h.name} had no money for a present, but {h.he} had {a(o)} that {OBJECTS[o]}.",
        f"{cap(h.he)} loved the {o}, but {h.he} loved {h.his} friend more. So {h.he} wrapped it in a big leaf.",
        f'When {f.name} opened the present, {f.name} smiled from ear to ear. "It is the best gift of all!"',
        f"Then {f.name} cut the cake, and {h.name} got the biggest piece, with {h.food} on top.",
    ], "kind"


PLOTS = {"lost": lost, "share": share, "journey": journey, "truth": truth, "rescue": rescue, "gift": gift}
ABOUT = {
    "lost": "who lost {o}",
    "share": "who learns to share {o}",
    "journey": "who goes on a long journey",
    "truth": "who tells the truth",
    "rescue": "who saves a friend",
    "gift": "who gives {o} to a friend",
}


def story(r, hero=None, plot=None, obj=None, place=None):
    h = hero or Hero(r)
    f = Hero(r)
    while f.name == h.name or f.animal == h.animal:
        f = Hero(r)
    o, place = obj or r.choice(list(OBJECTS)), place or r.choice(PLACES)
    plot = plot or r.choice(list(PLOTS))
    body, moral = PLOTS[plot](r, h, f, o, place)
    lines = [opening(r, h, place), *body, r.choice(MORALS[moral])]
    cut = r.randint(2, len(lines) - 2)
    return " ".join(lines[:cut]) + "\n\n" + " ".join(lines[cut:])


def ask_story(r):
    h, plot, o, place = Hero(r), r.choice(list(PLOTS)), r.choice(list(OBJECTS)), r.choice(PLACES)
    about = ABOUT[plot].format(o=a(o))
    ask = r.choice(
        [
            f"Tell me a story about {a(h.trait)} {h.animal} {about}.",
            f"Tell me a story about {a(h.animal)} {about}.",
            f"Write a short story about {a(h.animal)} named {h.name} {about}.",
            f"Can you tell me a story with {a(h.animal)}, {a(o)} and {a(place)}?",
            f"Please write a story about {h.name} the {h.animal}.",
            f"Tell me a story about {a(h.animal)}.",
            "Tell me a story.",
            "Tell me a bedtime story.",
            f"I would like a story set near {a(place)}.",
        ]
    )
    return ask, story(r, h, plot, o, place)


NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]


def ask_fact(r):
    kind = r.randrange(10)
    animal = r.choice(list(ANIMALS))
    sound, _, food, legs, young = ANIMALS[animal]
    if kind == 0:
        q = r.choice([f"What sound does {a(animal)} make?", f"What does {a(animal)} say?"])
        return q, (
            f"{cap(a(animal))} makes no sound."
            if "no sound" in sound
            else f"{cap(a(animal))} slaps its tail on the water."
            if animal == "beaver"
            else f"{cap(a(animal))} can {sound}."
        )
    if kind == 1:
        return f"How many legs does {a(animal)} have?", (
            f"{cap(a(animal))} has no legs." if not legs else f"{cap(a(animal))} has {NUMBERS[legs]} legs."
        )
    if kind == 2:
        return r.choice(
            [f"What does {a(animal)} eat?", f"What do you feed {a(animal)}?"]
        ), f"{cap(a(animal))} likes to eat {food}."
    if kind == 3:
        return r.choice(
            [f"What is a young {animal} called?", f"What do you call a baby {animal}?"]
        ), f"A young {animal} is called {a(young)}."
    if kind == 4:
        t = r.choice(list(COLOURS))
        return r.choice(
            [f"What colour is {t if ' ' in t else 'the ' + t if t == 'sky' else t}?"]
        ), f"{cap(t if ' ' in t else 'the ' + t if t == 'sky' else t)} is {COLOURS[t]}."
    if kind == 5:
        w = r.choice(list(OPPOSITES))
        w, x = (w, OPPOSITES[w]) if r.random() < 0.5 else (OPPOSITES[w], w)
        return f"What is the opposite of {w}?", f"The opposite of {w} is {x}."
    if kind == 6:
        i = r.randrange(7)
        return f"Which day comes after {DAYS[i]}?", f"After {DAYS[i]} comes {DAYS[(i + 1) % 7]}."
    if kind == 7:
        i = r.randrange(12)
        return f"Which month comes after {MONTHS[i]}?", f"After {MONTHS[i]} comes {MONTHS[(i + 1) % 12]}."
    if kind == 8:
        x = r.randrange(11)
        y = r.randrange(11)
        return r.choice([f"What is {x} plus {y}?", f"How much is {x} + {y}?"]), f"{x} plus {y} is {x + y}."
    x = r.randrange(21)
    y = r.randrange(x + 1)
    return r.choice([f"What is {x} minus {y}?", f"How much is {x} - {y}?"]), f"{x} minus {y} is {x - y}."


def smalltalk(r):
    return r.choice(
        [
            (
                r.choice(["Hello!", "Hi", "Hello there.", "Good morning!"]),
                r.choice(
                    ["Hello! Would you like to hear a story?", "Hi! Ask me for a story, or ask me a small question."]
                ),
            ),
            (
                r.choice(["Who are you?", "What are you?", "What is your name?"]),
                "I am a very small language model. I know short stories about animals, and a few facts.",
            ),
            (
                r.choice(["What can you do?", "How can you help me?", "Help"]),
                "I can tell short stories about animals, and I can answer small questions about sounds, colours, days and numbers.",
            ),
            (
                r.choice(["Thank you!", "Thanks", "Thank you for the story."]),
                r.choice(["You are welcome!", "You are welcome! Come back for another story."]),
            ),
            (r.choice(["Goodbye", "Bye!", "Good night."]), r.choice(["Goodbye! Sweet dreams.", "Bye! See you soon."])),
        ]
    )


def documents(seed):
    r = random.Random(seed)
    while True:
        x = r.random()
        if x < 0.25:
            yield ("text", None, story(r))
        elif x < 0.72:
            yield ("chat", *ask_story(r))
        elif x < 0.96:
            yield ("chat", *ask_fact(r))
        else:
            yield ("chat", *smalltalk(r))


def as_text(kind, user, text):
    """A document as the model is trained on it."""
    if kind == "text":
        return text + "<|endoftext|>"
    return f"<|user|>\n{user}<|end|>\n<|assistant|>\n{text}<|end|>\n<|endoftext|>"


if __name__ == "__main__":  # SEED N: so many documents as the model is trained on them
    seed, n = map(int, sys.argv[1:])
    print("".join(as_text(*document) for document in islice(documents(seed), n)), end="")
