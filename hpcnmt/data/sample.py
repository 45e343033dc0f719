"""The sample corpus: a generated language pair that needs more than a dictionary.

Source: English-like, subject verb object. Target: invented words, subject object verb; adjectives follow their noun; determiners and
adjectives agree with the noun in gender and number, objects carry a case ending, verbs agree with the subject and carry the tense that the
source tells by an auxiliary. Test sentences are unseen, and hold noun-adjective pairs that the training text never shows.
Everything follows from the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from hpcnmt.data.whole_folder import whole_folder

NOUNS = (
    "farmer teacher child doctor sailor baker king queen dog horse bird cat tree river house book letter ship stone garden "
    "bridge table window lamp clock coat apple wheel basket road"
).split()
ADJECTIVES = "old young red green small large quiet loud bright dark heavy light clean happy strange golden".split()
VERBS = "see find carry paint follow watch help clean move love draw touch visit lift guard push".split()
ADVERBS = "often today slowly gladly".split()
TENSES = {"": "an", "did": "ur", "will": "os"}
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
HELD_OUT = 7  # noun + adjective indices divisible by this never meet in training


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: noun index, plural, definite, adjective index or -1."""

    noun: int
    plural: bool
    definite: bool
    adjective: int


def lexicon(seed: int) -> dict[str, str]:
    """An invented target stem, of two or three syllables and different from all others, for every source word."""
    generator = random.Random(seed)
    stems: dict[str, str] = {}
    for word in [*NOUNS, *ADJECTIVES, *VERBS, *ADVERBS]:
        while True:
            stem = "".join(generator.choice(SYLLABLES) for _ in range(generator.choice((2, 3))))
            if stem not in stems.values():
                break
        stems[word] = stem
    return stems


def source_phrase(phrase: Phrase) -> list[str]:
    """Source words of a noun phrase."""
    determiner = "the" if phrase.definite else "some" if phrase.plural else "a"
    adjective = [ADJECTIVES[phrase.adjective]] if phrase.adjective >= 0 else []
    return [determiner, *adjective, NOUNS[phrase.noun] + "s" * phrase.plural]


def target_phrase(phrase: Phrase, stems: dict[str, str], is_object: bool) -> list[str]:
    """Target words of a noun phrase: determiner, noun, adjective; agreement in gender (noun index mod 3) and number."""
    ending = ("o", "a", "e")[phrase.noun % 3] + ("k" if phrase.plural else "")
    noun = stems[NOUNS[phrase.noun]] + ("ri" if phrase.plural else "") + ("m" if is_object else "")
    adjective = [stems[ADJECTIVES[phrase.adjective]] + ending] if phrase.adjective >= 0 else []
    return [("l" if phrase.definite else "un") + ending, noun, *adjective]


def _phrase(generator: random.Random, held_out: bool) -> Phrase:
    noun, adjective = generator.randrange(len(NOUNS)), generator.randrange(len(ADJECTIVES))
    while ((noun + adjective) % HELD_OUT == 0) != held_out:
        noun, adjective = generator.randrange(len(NOUNS)), generator.randrange(len(ADJECTIVES))
    keep = held_out or generator.random() < 0.6
    return Phrase(noun, generator.random() < 0.4, generator.random() < 0.6, adjective if keep else -1)


def _sentence(generator: random.Random, stems: dict[str, str], held_out: bool) -> tuple[str, str]:
    subject, thing = _phrase(generator, held_out), _phrase(generator, False)
    verb, tense = generator.choice(VERBS), generator.choice(list(TENSES))
    adverb = [generator.choice(ADVERBS)] if generator.random() < 0.4 else []
    inflected = [tense, verb] if tense else [verb + ("" if subject.plural else "s")]
    source = [*source_phrase(subject), *inflected, *source_phrase(thing), *adverb]
    verb_target = stems[verb] + TENSES[tense] + ("ti" if subject.plural else "")
    target = [stems[a] for a in adverb] + target_phrase(subject, stems, False) + target_phrase(thing, stems, True) + [verb_target]
    return " ".join(source) + ".", " ".join(target) + "."


def word_by_word(lines: list[str], seed: int) -> list[str]:
    """The dictionary form of every word, in the source's order: what a translation without grammar scores."""
    stems = lexicon(seed)
    fixed = {"the": "lo", "a": "uno", "some": "unok", "did": "", "will": ""}

    def form(word: str) -> str:
        stem = word if word in fixed or word in stems else word.removesuffix("s")
        return fixed[stem] if stem in fixed else stems[stem] + ("o" if stem in ADJECTIVES else "an" if stem in VERBS else "")

    return [" ".join(filter(None, map(form, line.rstrip(".").split()))) + "." for line in lines]


def write_sample_corpus(folder: Path, seed: int = 1, train: int = 8000, valid: int = 200, test: int = 300) -> None:
    """Writes {train,valid,test}.{src,trg}. Raises ValueError when the folder exists."""
    generator, stems = random.Random(seed), lexicon(seed)
    seen: set[str] = set()
    with whole_folder(folder) as work:
        for split, count in (("train", train), ("valid", valid), ("test", test)):
            pairs: list[tuple[str, str]] = []
            while len(pairs) < count:
                source, target = _sentence(generator, stems, split == "test")
                if source not in seen:
                    seen.add(source)
                    pairs.append((source, target))
            for index, suffix in enumerate(("src", "trg")):
                (work / f"{split}.{suffix}").write_text("".join(pair[index] + "\n" for pair in pairs), "utf-8")
