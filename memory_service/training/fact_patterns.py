"""Parts of the rules of `dialogue_facts`: sentence fragments, and rules made from verb lists.

A rule's pattern names the answering words `v`, optionally a `rest` that may stand in the question
("I play tennis | with my brother"), and any other words its questions repeat. Questions are written
in the first person; `pairs` are "what|I own", to be joined as "What did I say I own?".
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One sentence form; a `by_aspect` rule may ask "What food ..." where the value is food."""

    name: str
    pattern: re.Pattern[str]
    asks: tuple[str, ...]
    pairs: tuple[str, ...] = ()
    by_aspect: bool = False


_ADVERB = (
    r"(?:(?:also|really|just|recently|usually|sometimes|often|always|currently|mostly|only|still|"
    r"actually|mainly|generally|occasionally|especially|already|now|do|did|even|secretly) )*"
)
SELF = rf"i {_ADVERB}"
AM = rf"(?:i am|i'm|im) {_ADVERB}"
HAVE = rf"(?:i have|i've) {_ADVERB}"
_CUT = r"because|but|so|since|although|though|which|who|that|as i|if|,|"
_CUT += r"and (?:i|it|my|do|don't|have|am|like|love|did|will|would|it's|they)"
THING = (
    rf"(?P<v>.+?)(?P<rest>,? (?:with|on|at|in|for|every|when|after|before|during|near|from|{_CUT})"
    r"\b.*)?$"
)
DEED = rf"(?P<v>.+?)(?P<rest>,? (?:every|when|while|after|before|{_CUT})\b.*)?$"
END = r"(?: years old| years of age)?$"
_KIN = (
    r"mom|mother|dad|father|brother|sister|son|daughter|wife|husband|girlfriend|boyfriend|partner|"
    r"friend|best friend|boss|uncle|aunt|cousin|grandmother|grandma|grandfather|grandpa|roommate|"
    r"fiance|neighbor|nephew|niece|parents|kids|children|sons|daughters|brothers|sisters|friends"
)
_PET = (
    r"dog|cat|bird|parrot|horse|lizard|snake|hamster|rabbit|bunny|turtle|fish|ferret|puppy|kitten|"
    r"pet|guinea pig|iguana|rat|raccoon|pony|dogs|cats|horses|pets|fishes|birds|puppies|kittens"
)
_NO_VERB = r"(?!(?:been|gone|done|got|gotten|to|not|never|no|\w{2,}ed)\b)"
NUMBER = r"\d+|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|several|many"


def make_rule(
    name: str, pattern: str, asks: str, pairs: str = "", *, by_aspect: bool = False
) -> Rule:
    """Compile a rule; alternatives are separated by " / "."""
    return Rule(
        name,
        re.compile(pattern, re.I),
        tuple(asks.split(" / ")),
        tuple(pairs.split(" / ")) if pairs else (),
        by_aspect,
    )


def verb_rules() -> list[Rule]:
    """Verbs that are asked in the same way: "What do I play?", "What did I buy?"."""
    present = (
        "play|read|watch|listen to|drink|eat|teach|sell|write|paint|collect|study|speak|drive|use|"
        "make|need|wear|cook|grow|take|hunt|follow|support|run|build|fix|bake|raise|breed|get|see|"
        "know|care about|care for|take care of|work with|work on|dream of|dream about|believe in|"
        "root for|compete in|participate in|subscribe to|belong to|go by|worry about|miss|train|"
        "practice|foster|do|sing|create|design|draw|buy|keep|ride|recommend|appreciate|"
        "struggle with|deal with|suffer from|help|find|give|talk to|talk about|hang out with"
    )
    past = (
        "bought:buy|got:get|saw:see|watched:watch|found:find|took:take|made:make|studied:study|"
        "learned:learn|liked:like|lost:lose|won:win|built:build|started:start|adopted:adopt|"
        "ate:eat|had:have|played:play|worked on:work on|wrote:write|tried:try|met:meet|sold:sell|"
        "majored in:major in|enjoyed:enjoy|received:receive|loved:love|drove:drive|wanted:want|"
        "cooked:cook|quit:quit|broke:break|owned:own|joined:join|finished:finish|ran:run|"
        "decided on:decide on|participated in:participate in|painted:paint|gave up:give up|"
        "listened to:listen to|invested in:invest in|ordered:order|heard:hear|hated:hate"
    )
    likes = "like|love|enjoy|hate|dislike|prefer|want|own|have|adore|crave|can't stand|wish for"
    rules = [
        make_rule(
            "likes",
            rf"{SELF}(?P<verb>{likes}) {_NO_VERB}{THING}",
            "What do I {verb}?",
            "what|I {verb}",
            by_aspect=True,
        ),
        make_rule(
            "does", rf"{SELF}(?P<verb>{present}) {THING}", "What do I {verb}?", "what|I {verb}"
        ),
    ]
    for pair in past.split("|"):
        verb, base = pair.split(":")
        rules.append(
            make_rule("did", rf"{SELF}{verb} {THING}", f"What did I {base}?", f"what|I {verb}")
        )
    return rules


def kin_rules() -> list[Rule]:
    """What relatives, friends and pets are and do."""
    who = rf"(?P<x>my (?:[\w-]+ )?(?:{_KIN}|{_PET}))"
    third = "likes:like|loves:love|has:have|plays:play|owns:own|hates:hate|wants:want|teaches:teach"
    third += "|enjoys:enjoy|eats:eat|makes:make|sells:sell|runs:run|studies:study|speaks:speak"
    rules = [
        make_rule(
            "kin_place",
            rf"{who} (?P<verb>lives?|lived|is living|are living) (?:in|near|on|at) {THING}",
            "Where is the home of {x}?",
            "where|{x} {verb}",
        ),
        make_rule(
            "kin_work",
            rf"{who} (?P<verb>works?|worked) (?P<y>as|at|for|in) {THING}",
            "What is the work of {x}?",
            "what|{x} {verb} {y}",
        ),
        make_rule(
            "kin_age",
            rf"{who} is (?P<v>\d+|\w+teen|twenty[\w-]*){END}",
            "How old is {x}?",
            "how old|{x} is",
        ),
    ]
    for pair in third.split("|"):
        verb, base = pair.split(":")
        rules.append(
            make_rule(
                "kin_does",
                rf"{who} {verb} {THING}",
                f"What does {{x}} {base}?",
                f"what|{{x}} {verb}",
            )
        )
    rules.append(
        make_rule(
            "about_kin",
            rf"{who} (?:(?:is|are|was|were) )?(?P<v>(?:(?<=is )|(?<=are )|(?<=was )|(?<=were )|"
            r"(?:has|have|had|does|do|did|\w+s|\w+ed|\w+n't) ).+)$",
            "What did I tell {you} about {x}? / What did I say about {x}?",
        )
    )
    return rules


STATES = {"would like": "want", "would love": "want"}
"""Verb groups that cannot stand after "What do I"."""

STOP_VALUES = frozenset(
    [
        *("it", "that", "this", "them", "one", "a lot", "lot", "so", "to", "there", "her", "him"),
        *("he", "she", "they", "well", "much", "too", "not", "some", "more", "do", "be", "myself"),
        *("things", "stuff", "something", "good", "also", "all", "day", "time", "years", "up"),
    ]
)
"""Words that do not carry a fact on their own."""
