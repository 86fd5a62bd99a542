"""The text that is read where the user gives none: a few hundred tokens of prose, numbers, code and other scripts."""

from __future__ import annotations

TEXT = """\
A mixture of experts is a layer that holds many small networks and uses few of them. For every token a router gives each
expert a score, keeps the best, and mixes their answers by weight. The rest of the layer does no work for that token, so
a model can know much and still answer quickly, as long as all of its parts are near enough to be asked.

Where the parts are is a question of memory. Attention looks at everything that was said before, token by token, and
wants fast memory for what it remembers. An expert is large and seldom needed; it can wait in slower memory, and nobody
notices until it is called. Put the router on one device and the experts on another, and each token crosses the bridge
between them twice. That is cheap for one token and dear for a thousand, which is why the order of work matters.

Some sums to count on: 17 + 25 = 42, 9 * 8 = 72, 1000 - 373 = 627, and 3.14159 is close to pi. In the year 1969 people
walked on the moon; the trip took about 76 hours. Two trains leave at 8:15 and 8:40.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

print(mean([2, 3, 5, 7, 11]))  # 5.6

Der Fluss ist breit, aber die Brücke hält. La rivière est large, mais le pont tient. 川は広いが、橋は持ちこたえる。

First he read the letter, then he read it again, more slowly. "It says what I thought it would say," he told her, "and
nothing that I hoped." She put the kettle on. Outside the rain had stopped, and the street shone like a plate.
"""

#: What is read to tiny-R1: it was taught nothing but conversations like this, and of other text its guesses are noise,
#: which any rounding changes.
TINY_R1_TEXT = """\
<｜User｜>Sort these numbers: 314, 59, 265, 358, 97<｜Assistant｜><think>
sort <
|A314B059C265D358E097
<AB30>B
<BC02<B
<BD03<B
<BE00=59<B
B059|A314C265D358E097
<AC32>C
<CD23<C
<CE20>E
B059E097|A314C265D358
<AC32>C
<CD23<C
B059E097C265|A314D358
<AD33=15<A
B059E097C265A314|D358
B059E097C265A314D358|
</think>

59, 97, 265, 314, 358"""


def default_text(model_name: str) -> str:
    """The text for a model of that name."""
    return TINY_R1_TEXT if model_name == "tiny-R1" else TEXT
