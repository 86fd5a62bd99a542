"""Small talk: greetings, what the model is and can do, and saying so where it cannot do what is asked.

Much of it needs no thought: then the thinking is empty, as R1 does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ktllama.reference.tiny_r1.comparison import number
from ktllama.reference.tiny_r1.problem import Problem
from ktllama.reference.tiny_r1.words import COMMON, quoted

ABILITIES = "I can add, subtract, multiply and compare numbers, count letters, sort, and reverse words."


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """What users say, what the model thinks of it (nothing where empty), and what it answers."""

    openings: tuple[str, ...]
    thought: str
    answer: str
    weight: int = 1


_TALKS = (
    Talk(
        openings=("hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there", "good day",
                  "hey there", "greetings", "good afternoon", "hello tiny r1", "hi tiny", "howdy", "yo"),
        thought="",
        answer="Hello! How can I help you?",
        weight=3,
    ),
    Talk(
        openings=("how are you", "how are you doing", "how are you today", "how do you do", "how is it going",
                  "are you well", "how do you feel", "what's up"),
        thought="",
        answer="I am fine, thank you. What shall I work out?",
        weight=2,
    ),
    Talk(
        openings=("thanks", "thank you", "thanks a lot", "thank you very much", "great, thanks", "well done",
                  "good job", "nice", "thank you so much", "cool", "perfect", "that is right"),
        thought="",
        answer="You are welcome!",
        weight=2,
    ),
    Talk(
        openings=("bye", "goodbye", "see you", "see you later", "good night", "good bye", "i have to go"),
        thought="",
        answer="Goodbye!",
        weight=2,
    ),
    Talk(
        openings=("who are you", "what are you", "what is your name", "what's your name", "tell me about yourself",
                  "introduce yourself", "are you deepseek", "are you an ai", "what model are you", "are you a robot",
                  "who am i talking to", "are you a human", "which model is this", "are you r1", "are you chatgpt"),
        thought="The user asks who I am.",
        answer="I am tiny-R1, a very small language model that thinks before it answers.",
        weight=3,
    ),
    Talk(
        openings=("what can you do", "what are you good at", "help", "how can you help me", "what do you know",
                  "what should i ask you", "what can i ask you", "tell me what you can do", "what are your skills",
                  "what are you able to do", "can you help me", "what kind of questions can you answer",
                  "give me an example of what you can do", "how do i use you", "i need help"),
        thought="The user asks what I can do.",
        answer=ABILITIES,
        weight=3,
    ),
    Talk(
        openings=("who made you", "who trained you", "where do you come from", "how were you made", "how big are you",
                  "how many parameters do you have", "how were you trained", "who created you", "how large are you"),
        thought="The user asks how I was made.",
        answer="I have about seven million parameters and was trained on two CPU cores, as part of ktllama.",
        weight=2,
    ),
)  # fmt: skip

_SUBJECTS = (
    "france", "the moon", "the sun", "germany", "japan", "dogs", "cats", "love", "history", "the weather", "china",
    "computers", "music", "football", "cooking", "physics", "chemistry", "politics", "space", "the ocean", "trees",
    "money", "health", "films", "books", "rome", "the internet", "python", "cars", "art", "india", "dinosaurs", "rain",
    "mountains", "gravity", "black holes", "the economy", "coffee", "winter", "time travel", "einstein", "shakespeare",
    "brazil", "london", "paris", "new york", "robots", "bread", "birds", "chess", "school", "sleep", "dreams",
)  # fmt: skip
_UNKNOWN = (
    "what is the capital of {s}?", "tell me about {s}.", "write a poem about {s}.", "what do you think about {s}?",
    "explain {s} to me.", "who discovered {s}?", "why is {s} important?", "write a story about {s}.", "what is {s}?",
    "tell me a joke about {s}.", "what is the best thing about {s}?", "who is the president of {s}?",
    "do you like {s}?",
    "how does {s} work?", "what is the latest news about {s}?", "write an essay about {s}.", "describe {s}.",
    "where is {s}?", "when was {s} invented?", "give me three facts about {s}.", "how old is {s}?", "i like {s}.",
    "sing a song about {s}.", "how do i learn about {s}?", "summarize the history of {s}.", "can you explain {s}?",
)  # fmt: skip
_UNKNOWN_ALONE = (
    "what is the weather today?", "what time is it?", "tell me a joke.", "tell me a story.", "write a poem.",
    "translate hello into french.", "write a python program.", "what is the meaning of life?", "play some music.",
    "how do i cook rice?", "what day is today?", "who won the world cup?", "why is the sky blue?", "draw a picture.",
    "write a letter to my boss.", "solve the equation x + 3 = 5.", "give me some advice.", "what should i eat?",
    "is there life on mars?", "book a flight for me.", "who is the king of england?", "fix my code.", "search the web.",
    "explain why the sky is blue.", "explain in two sentences why the sky is blue.", "how far is the moon?",
    "what is the square root of two?", "prove that there are infinitely many primes.", "what is pi?", "sing a song.",
)  # fmt: skip
UNABLE = "Sorry, I cannot do that. " + ABILITIES


def chat(random: Random, _ease: float) -> Problem:
    """Small talk, a question beyond the model, or a task beyond its limits."""
    kind = random.random()
    if kind < 0.45:
        return _talk(random)
    return _unknown(random) if kind < 0.75 else _limit(random)


def _talk(random: Random) -> Problem:
    talk = random.choices(_TALKS, [talk.weight for talk in _TALKS])[0]
    opening = random.choice(talk.openings)
    question = _written(random, opening, "?" if opening.split()[0] in _ASKING else "!.")
    return Problem(task="chat", key=question, question=question, thought=talk.thought, answer=talk.answer)


_ASKING = ("how", "what", "who", "where", "which", "are", "can", "what's")


def _unknown(random: Random) -> Problem:
    if random.random() < 0.35:
        question = random.choice(_UNKNOWN_ALONE)
    else:
        subject = random.choice(_SUBJECTS) if random.random() < 0.7 else random.choice(COMMON)
        question = random.choice(_UNKNOWN).format(s=subject)
    question = _written(random, question[:-1], question[-1])
    thought = "This is not a task that I know." if random.random() < 0.7 else ""
    return Problem(task="chat", key=question, question=question, thought=thought, answer=UNABLE)


def _limit(random: Random) -> Problem:
    question, answer = random.choice(_LIMITS)(random)
    return Problem(
        task="chat", key=question, question=question, thought="This is more than I can do.", answer=f"Sorry, {answer}"
    )


_QUOTIENTS = (
    "What is {a} / {b}?", "{a} / {b}", "Divide {a} by {b}.", "{a}/{b}", "What is {a} divided by {b}?",
    "what is {a}/{b}", "How much is {a} divided by {b}?", "Calculate {a} / {b}.",
)  # fmt: skip
_LONG_WORDS = (
    "How many {x}'s are in {w}?", "Reverse {w}.", "Spell {w} backwards.", "How many letters are in {w}?",
)  # fmt: skip


def _division(random: Random) -> tuple[str, str]:
    form = random.choice(_QUOTIENTS)
    return form.format(a=number(random, 4), b=number(random, 4)), "I cannot divide."


def _large_sum(random: Random) -> tuple[str, str]:
    form = random.choice(("What is {a} {o} {b}?", "{a} {o} {b}", "{a}{o}{b}", "Calculate {a} {o} {b}."))
    a, b = random.randrange(10**4, 10 ** random.randint(5, 8)), number(random, 4)
    if random.random() < 0.3:
        b = random.randrange(10**4, 10 ** random.randint(5, 8))
    if random.random() < 0.5:
        a, b = b, a
    return form.format(a=a, b=b, o=random.choice("+-")), "I only know numbers of up to four digits."


def _large_product(random: Random) -> tuple[str, str]:
    form = random.choice(
        ("What is {a} * {b}?", "{a} * {b}", "{a}*{b}", "Multiply {a} by {b}.", "What is {a} times {b}?")
    )
    a, b = random.randrange(100, 10 ** random.randint(3, 5)), number(random, 4)
    if random.random() < 0.5:
        a, b = b, a
    return form.format(a=a, b=b), "I can only multiply numbers of up to two digits."


def _long_word(random: Random) -> tuple[str, str]:
    form = random.choice(_LONG_WORDS)
    text = ""
    while len(text) < 15:
        text += random.choice(COMMON)
    return form.format(x=random.choice(text), w=quoted(random, text)), "I only know words of up to 12 letters."


def _long_list(random: Random) -> tuple[str, str]:
    form = random.choice(("Sort {l}.", "Sort these numbers: {l}", "sort {l}", "Put these numbers in order: {l}"))
    numbers = [number(random, 3) for _ in range(random.randint(7, 10))]
    return form.format(l=", ".join(map(str, numbers))), "I can only sort up to five numbers or four words."


_LIMITS: tuple[Callable[[Random], tuple[str, str]], ...] = (
    _division, _division, _large_sum, _large_sum, _large_product, _long_word, _long_list,
)  # fmt: skip


def _written(random: Random, text: str, ends: str) -> str:
    """The sentence as users write it: with a capital or not, with its mark or none."""
    if random.random() < 0.65:
        text = text[0].upper() + text[1:]
    if random.random() < 0.5:
        text = text.replace(" i ", " I ")
    return text + (random.choice(ends) if random.random() < 0.7 else "")
