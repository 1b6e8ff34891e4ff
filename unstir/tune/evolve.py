"""Which candidates to score next: at random, by evolution, or by evolution against a predictor (S³).

A method is a function of the space, of all that was scored before, and of the number of the generation; it holds nothing in
between. So a search that was stopped proposes the same candidates when it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from .._random import mix
from .predictor import fit_ranker
from .space import Genes, Space

ELITE = 15  # parents are drawn from so many of the best
CHILDREN = 20  # a generation
CROSS, FRESH, BOTH = 0.3, 0.15, 0.5  # probabilities: two parents; no parent; a crossed child is mutated, too
TRIES = 200  # per child, for one that was not seen before
FIRST = 0.2  # S³: share of the evaluations before the first predictor
STAGES = 16  # S³: predictors
CROWD = 300  # S³: children that one predictor ranks; evolving against it for longer leaves what it knows
BLIND = 0.25  # S³: share of a stage that evolves from the scored candidates without the predictor


class Scored(NamedTuple):
    """A candidate, its score, and the generation it belongs to."""

    genes: Genes
    score: float
    generation: int


Propose = Callable[[Space, Sequence[Scored], int, int, int], list[Genes]]


def key(genes: Genes) -> str:
    """What makes two candidates the same."""
    return json.dumps(genes, sort_keys=True)


def random(space: Space, known: Sequence[Scored], generation: int, budget: int, seed: int) -> list[Genes]:
    """The known plans, then random candidates."""
    if generation == 0:
        return space.starts()
    rng, ripe = Random(mix(seed, 1, generation)), len(known) / budget
    return _new(_repeat(lambda: space.random(rng, ripe)), CHILDREN, {key(k.genes) for k in known})


def evolution(space: Space, known: Sequence[Scored], generation: int, budget: int, seed: int) -> list[Genes]:
    """The known plans, then children of the best of all generations."""
    if generation == 0:
        return space.starts()
    rng, ripe = Random(mix(seed, 2, generation)), len(known) / budget
    parents = [k.genes for k in sorted(known, key=lambda k: k.score)[:ELITE]]
    return _new(_children(space, parents, rng, ripe), CHILDREN, {key(k.genes) for k in known})


def s3(space: Space, known: Sequence[Scored], generation: int, budget: int, seed: int) -> list[Genes]:
    """The known plans and random candidates; then in every stage a predictor is trained on all that is scored, the best have
    many children, and those that it ranks highest are scored."""
    if generation == 0:
        starts = space.starts()
        rng = Random(mix(seed, 3))
        more = max(CHILDREN, int(FIRST * budget) - len(starts))
        return starts + _new(_repeat(lambda: space.random(rng, 0.0)), more, set(map(key, starts)))
    rng, ripe = Random(mix(seed, 3, generation)), len(known) / budget
    order = sorted(known, key=lambda k: k.score)
    seen = {key(k.genes) for k in known}
    predict = fit_ranker([space.numbers(k.genes) for k in known], [k.score for k in known], mix(seed, generation) >> 1)
    stage = max(4, round((1 - FIRST) * budget / STAGES))
    best = [k.genes for k in order[:ELITE]]
    crowd = _new(_children(space, best, rng, ripe), CROWD, seen)
    guesses = predict([space.numbers(genes) for genes in crowd]) if crowd else []
    ranked = [genes for _, genes in sorted(zip(guesses, crowd, strict=True), key=lambda entry: entry[0])]
    chosen = ranked[: stage - round(BLIND * stage)]
    return chosen + _new(_children(space, best, rng, ripe), stage - len(chosen), seen | set(map(key, chosen)))


METHODS: dict[str, Propose] = {"s3": s3, "evolution": evolution, "random": random}


def _children(space: Space, parents: Sequence[Genes], rng: Random, ripe: float) -> Iterator[Genes]:
    """Children without end."""
    while True:
        if rng.random() < FRESH:
            yield space.random(rng, ripe)
            continue
        child, crossed = rng.choice(parents), len(parents) > 1 and rng.random() < CROSS
        if crossed:
            one, two = rng.sample(parents, 2)
            child = space.cross(one, two, rng)
        yield child if crossed and rng.random() > BOTH else space.mutate(child, rng, ripe)


def _repeat(make: Callable[[], Genes]) -> Iterator[Genes]:
    while True:
        yield make()


def _new(source: Iterator[Genes], count: int, seen: set[str]) -> list[Genes]:
    """The next `count` candidates that were not seen before; fewer if the space seems to be used up."""
    out: dict[str, Genes] = {}
    for tries, genes in enumerate(source):
        if len(out) >= count or tries >= TRIES * max(1, count):
            break
        if (name := key(genes)) not in seen:
            out.setdefault(name, genes)
    return list(out.values())
