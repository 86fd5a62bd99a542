"""The words that problems are about: common ones, made-up ones, and strings over a few letters."""

from __future__ import annotations

from random import Random

#: The most letters of a word: each has an index of one token.
MOST_LETTERS = 12
INDEX = "1234567890*#"

_COMMON = """
able about above across act add after again age ago air all almost alone along also always am among an and anchor
angle animal ankle answer ant any anyone apple apricot april apron arch area arm army around arrow art artist as ash
ask asleep at atlas attic august aunt autumn avocado away axe baby back bacon bad badge bag baker bakery ball balloon
bamboo banana band bank bar barn barrel basin basket bat bath bay be beach bead beak bean bear beard beaver bed bee
beef beet beetle before begin bell belt bench berry best better big bike bill bird biscuit bit bitter black blanket
block blue board boat body bone book bookkeeper boot border bottle bottom bowl box boy brain branch brave bread break
breeze brick bridge bright broom brother brown brush bubble bucket bug build bull bumper bundle bus bush busy butter
butterfly button cabbage cabin cactus cage cake calf call calm camel camera camp can canal candle candy canoe canvas
cap car card carpet carrot cart castle cat catch cattle cave ceiling cellar cello chain chair chalk cheek cheese
cherry chess chest chicken child chimney chin church circle circus city clay clean clear clever cliff clock close
cloth cloud clover clown coal coat cobweb cocoa coconut coffee coin cold collar color comb come comet committee common
compass cook cookie cool copper coral cork corn corner cotton couch cough country cousin cow crab cradle crane crater
crayon cream creek cricket crocodile crow crown cup curtain cushion dad daisy dance danger dark date daughter dawn day
deck deep deer desert desk diamond dinner dirt dish doctor dog doll dollar dolphin donkey door dot dove down dozen
dragon drawer dream dress drink drop drum dry duck dune dust eagle ear early earth east easy eat echo edge eel egg
eight elbow elephant eleven elk empty end engine evening ever every eye fabric face falcon fall family fan far farm
farmer fast father feather fence fern ferry field fifteen fig finger fire first fish five flag flame flat floor flour
flower flute fly foam fog folder food foot forest fork fossil four fox free fresh friday friend frog from frost fruit
full funny fur galaxy game garden garlic gate giant ginger giraffe girl give glacier glass glove glue go goat gold
good goose grape grass gravel gray great green grill ground group guitar gull hair half hall hammer hand handle happy
harbor hard hare harp hat hawk hay hazel head heart heavy hedge heel height helmet help hen herb here heron hide high
hill hippo hobby holiday holly honey hood hook hope horn horse hospital hotel hour house hundred hungry hut ice idea
igloo inch ink insect iron island ivory ivy jacket jam jar jaw jelly jewel job join joke journey judge juice july jump
june jungle kangaroo keep kettle key kid kind king kiosk kitchen kite kitten knee knife knot koala label ladder lady
lake lamb lamp language lantern large laugh lava lawn lazy leaf learn leather left leg lemon lentil leopard lesson
letter lettuce level library lid light lily lime line lion lip list little lizard llama lobster lock log long loom
loud love low luck lunch machine magic magnet maid mail mall mammal man mango map maple marble march market mask mat
meadow meal meat medal melon memory metal milk mill mine minute mirror mississippi mist mitten model monday money
monkey month moon moose morning moss moth mother motor mountain mouse mouth movie mud muffin mug mule museum mushroom
music mustard nail name napkin narrow nature near neck needle nest net never new night nine noise noodle noon north
nose note notebook novel number nurse nut oak oar oasis ocean october octopus office oil old olive one onion open
orange orbit orchard otter oven owl ox oyster paddle page paint pair palace palm pan panda panther paper parade parent
park parrot party pasta path peach peanut pear pearl pebble pedal pelican pen pencil penguin people pepper piano
picnic picture pie pig pigeon pillow pilot pine pink pipe pizza place plane planet plant plate plum pocket poem point
polar pond pony pool poppy porch potato powder present pretty prince puddle pumpkin puppet puppy purple purse puzzle
quail queen quick quiet quilt rabbit race radio raft rain rainbow ranch raspberry rat raven reach read red reef rhythm
ribbon rice rich ride ring river road roast robin robot rock rocket roof room rooster root rope rose round row ruby
rug ruler run sad saddle sail salad salmon salt sand sandal satin saturday sauce saw scale scarf school science
scissors sea seal season seat second seed seven shade shadow shark sheep sheet shelf shell shine ship shirt shoe shop
shore short shoulder shovel sign silk silver simple singer sister six skate sky sled sleep slow small smile smoke
smooth snail snake snow soap soccer sock sofa soft soil son song soup sour south space spade spark sparrow spider
spoon sport spring square squirrel stable stairs star station steam steel stem stick stone stool storm story stove
strawberry stream street string strong student sugar summer sun sunday sunny supper surf swan sweater sweet swim sword
table tail tall tea teacher team ten tennis tent test thank thick thin thread three thumb thunder thursday ticket
tiger tile time tin tiny toad today toe tomato tomorrow tongue tool tooth top torch tower town toy tractor train tray
tree triangle truck trumpet tube tuesday tulip tunnel turkey turtle twelve twenty two umbrella uncle under up valley
van vase velvet village vine violet violin voice volcano wagon wall walnut walrus warm wasp water wave wax weather web
wednesday week well west whale wheat wheel whistle white wide willow wind window wing winter wire wise wolf wood wool
word worm yard year yellow yesterday young zebra zero zoo
"""
COMMON = tuple(_COMMON.split())

_ONSETS = (
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "st",
    "tr",
    "pl",
    "sh",
    "",
    "k",
    "j",
    "z",
    "qu",
    "y",
)
_VOWELS = ("a", "e", "i", "o", "u", "ee", "oo", "ai")
_CODAS = ("", "", "n", "r", "s", "t", "l", "m", "ss", "ll", "ck", "tt", "x")
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def word(random: Random, ease: float, most: int = MOST_LETTERS) -> str:
    """A word of 2 to ``most`` letters.

    Easy ones have up to six letters, over an alphabet of few that grows as training goes on; later common words are the
    most frequent. Strings over few letters stay to the end: in them a letter's neighbours do not tell its place. Below
    an ease of 0, long ones come more often.
    """
    longer, ease = ease < 0 and random.random() < -0.4 * ease, max(0.0, ease)
    while True:
        kind = random.random()
        if kind < 0.2 + 0.6 * ease:
            made = _over_few_letters(random, ease, most, longer=longer)
        elif kind < 0.75 + 0.2 * ease:
            made = random.choice(COMMON)
        else:
            made = _made_up(random)
        if (min(9, most) if longer else 2) <= len(made) <= most:
            return made


def _over_few_letters(random: Random, ease: float, most: int, *, longer: bool) -> str:
    known = _LETTERS[: round(4 + 22 * (1 - ease))]
    alphabet = random.sample(known, min(len(known), random.randint(2, 5)))
    if longer:
        return "".join(random.choice(alphabet) for _ in range(random.randint(min(9, most), most)))
    longest = min(most, 6 if random.random() < 0.3 + 0.6 * ease else most)
    return "".join(random.choice(alphabet) for _ in range(random.randint(2, longest)))


def _made_up(random: Random) -> str:
    syllables = random.choice((1, 2, 2, 3, 3))
    return "".join(random.choice(_ONSETS) + random.choice(_VOWELS) + random.choice(_CODAS) for _ in range(syllables))


def quoted(random: Random, text: str) -> str:
    """The word as a user may write it: in double quotes, single quotes or none."""
    return random.choice(('"{}"', '"{}"', "'{}'", "{}", "{}")).format(text)
