"""Separates random strings, such as keys, from words and identifiers by pairs of characters.

The published redaction uses the package gibberish-detector with a model trained on English books.
This model is trained at import on the words below, which are those that identifiers of code are
made of, so that it is the same on every machine and for every version of Python.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

# Mean log probability of a pair, in nats, below which a string is random. Of 20 random letters and
# digits 1 in 500 is above it; of the identifiers of the standard library with at least 20
# characters 98 in 100 are.
LEAST_SCORE = -3.5
# The same for a string that the text around it marks as a key: 1 in 10,000 random ones is above it.
LEAST_MARKED_SCORE = -3.2
_WORD_START = re.compile("(?<=[a-z])(?=[A-Z])")
_DIGIT = re.compile("[0-9]")
_OTHER = re.compile("[^a-z0]+")
_SHARE_UNIFORM = 0.05  # of the probability of a pair, so that none is 0

_WORDS = """
the of and to in is that for it as was with be by on not his but at are this have from or had an
they which one you were her all their there been would who when more will no if out so what
up its about into than them can only other new some could time these two may then do first any
access account action active adapter add address after agent alias align all allow alpha amount
anchor angle api append application apply archive area argument array assert asset assign async
attach attribute auth author auto available average back background backup bad balance base batch
before begin best between binary bind bit black block blue board body bold bool border both bottom
bound box branch break bridge broken browser buffer bug build button byte cache calculate call
callback camera cancel candidate capacity card case cast category cell center certificate chain
change channel char character chart check checkbox child choice circle class clean clear click
client clone close cloud cluster code collection color column command comment commit common
compare compile complete component compress compute condition config connect console constant
construct contact contain container content context continue control convert cookie copy core
corner count country create credential cross current cursor custom customer data database date day
debug decimal decode default define delay delete delta depth description design destination
detail device dialog dict difference digest dimension direct directory disable disk display
distance document domain double down download draw driver drop dump duplicate duration dynamic
each edge edit editor effect element email empty enable encode end engine entity entry enum
environment equal error escape event example exception execute exist exit expand expected
experiment explicit export expression extend external extra factor factory fail false family
feature fetch field figure file fill filter final find finish fix flag float flow flush folder
follow font force foreground form format forward found frame free frequency friend front full
function future game gateway general generate get global gradient graph gray green grid group
handle hash head header height hello help helper hidden high history hook host hour html http
icon identifier image implement import include increment index info information inherit init inner
input insert inspect install instance instead integer interface internal interval invalid invoke
item iterator java javascript job join json kernel key keyboard kind label language large last
latest latitude launch layer layout lead leaf learn left length level library license light limit
line linear link linux list listen load local location lock log logger login long loop lower
machine main make manager manifest map margin mark market mask master match material matrix max
mean measure media member memory menu merge message meta method metric middle min minimum minute
mirror missing mode model module monitor month mount mouse move multiple mutable name native
network next node normal note nothing notification null number object observer offset old open
operation optimize option order origin other output outer overflow override owner package padding
page panel parallel parameter parent parse part partial pass password patch path pattern payload
peer pending percent perform permission phase phone picture pixel place plain plan platform player
plugin point policy pool popup port position post power precision predict prefix prepare present
preview previous price primary print priority private process profile program progress
project promise property protocol provider proxy public publish pull push python query question
queue quick quote radius random range rate ratio raw reach read ready real reason receive record
rectangle recursive red reduce reference refresh region register regular relation release remote
remove render repeat replace report repository request require reset resize resolve resource
response rest result retry return reverse right role root rotate round route router rule run
runtime safe sample save scale schedule schema scope score screen script scroll search second
secret section security select self send sequence serial server service session set setting setup
shadow shape share sheet shell shift short show side sign signal simple single size skip sleep
slice slot small socket software sort source space spec speed split stack stage standard start
state static statistic status step stop storage store stream strict string strip structure style
subject submit success suffix sum support surface switch symbol sync system table tag target task
team template temp tensor term test text thread threshold time timeout title toggle token tool top
total touch trace track train transaction transfer transform transition translate transport tree
trigger true try tuple turn type under undefined union unique unit universe unknown unlock update
upload upper url usage user util valid validate value variable vector vendor verify version
vertical video view visible visit volume wait warning watch weight while white widget width window
word work worker world wrap write xml year yellow zero zone
utf8 int32 int64 float32 x86 sha256 base64 md5 i18n v1 v2 p2 h1 mp3 2d 3d log10 atan2 win32 arm64
"""


def _symbols(text: str) -> str:
    """Returns letters in lower case, every digit as 0 and all between them as one space.

    A capital after a small letter starts a word, as in camelCase.
    """
    words = _WORD_START.sub(" ", text).lower()
    return _OTHER.sub(" ", _DIGIT.sub("0", words))


def _train(words: str) -> dict[tuple[str, str], float]:
    """Returns the log probability of each pair of symbols given the first of them."""
    # Spaces count as symbols, so that beginnings and ends of words have probabilities too.
    text = " " + " ".join(words.split()) + " "
    pairs = Counter(itertools.pairwise(text))
    firsts = Counter(text[:-1])
    alphabet = "abcdefghijklmnopqrstuvwxyz0 "
    table = {}
    for first in alphabet:
        for second in alphabet:
            # A mixture with the uniform distribution: a pair that the words lack stays possible.
            share = pairs[first, second] / firsts[first]
            table[first, second] = math.log(
                (1 - _SHARE_UNIFORM) * share + _SHARE_UNIFORM / len(alphabet)
            )
    return table


_LOG_PROBABILITY = _train(_WORDS)


def score(text: str) -> float:
    """Returns the mean log probability of the pairs of characters, in nats; higher for words."""
    symbols = _symbols(f" {text} ")
    if len(symbols) < 2:  # no letters and digits
        return 0.0
    # A mean and not a sum: long keys and short ones are compared with one bound.
    return sum(map(_LOG_PROBABILITY.__getitem__, itertools.pairwise(symbols))) / (len(symbols) - 1)


def is_gibberish(text: str, least: float = LEAST_SCORE) -> bool:
    """Returns whether a string is random rather than made of words."""
    return score(text) < least
