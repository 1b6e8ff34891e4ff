"""Speech Enhancement and Dereverberation with Diffusion-based Generative Models (2023), known as SGMSE+.

For people with noisy recordings; and a pattern for restoring anything that has a complex spectrogram. A clean spectrogram
x0 drifts towards the noisy one, y, while Gaussian noise comes up; the way back starts at y and noise, not at noise alone,
which is why 30 steps suffice where others need hundreds.

Parts: `process.OUVE` (y-anchored, its noise shared between real and imaginary parts), `data.Spectrogram` (compressed
amplitudes), a small network that masks and adds (`nets.MaskingUNet`), the published predictor–corrector as a table in the
residual frame, any other plan of the catalogue, and `steer.restore_sound`. The trained model is a folder that
`unstir restore` takes.

Recordings: set UNSTIR_SPEECH to the Free Spoken Digit Dataset (folder or zip); without it, espeak-ng speaks (see `_speech`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .. import train
from ..data import Pairs
from ..data.sound import peak, write_wav
from ..data.spectrogram import Spectrogram
from ..denoiser import Denoiser
from ..evaluate.quality import Quality, Tally, si_sdr, sound_metrics
from ..evaluate.spectrograms import spectrogram_plot
from ..interop import load_model, save_model
from ..nets.masking import MaskingUNet
from ..plan import Plan, Row
from ..process import OUVE
from ..solvers import plan, reverse_diffusion
from ..steer import restore_sound
from ._digits import report
from ._speech import NOISES, RATE, Speech, between, cut, mixed, sentence, speech, whole
from .protocol import Result, at_least

RECIPE = 2  # part of the cache's name: raise it when the network or its training changes
TRANSFORM = Spectrogram(RATE, n_fft=254, hop=64, factor=0.2, fold=4)
PROCESS = OUVE(1.5, 0.05 / math.sqrt(2), 0.5 / math.sqrt(2))  # E|z|² = 1 for complex z
CROP = 63 * TRANSFORM.hop  # 64 frames, half a second
SNRS = (0.0, 5.0, 10.0)
BUDGET = 30  # evaluations of the network


def predictor_corrector(process: OUVE, steps: int = 30, r: float = 0.5, end: float = 0.03) -> Plan:
    """The published sampler, two calls a step: t from 1 to `end` in equal steps, then one step to 0.

    corrector (annealed Langevin)   w ← (1 − 2r²) w + 2r² α D + 2rσ z,     w = x − y, D − y
    predictor                       `solvers.reverse_diffusion`
    """
    if steps < 2 or not 0 <= r < 1:
        raise ValueError(f"steps={steps} must be at least 2, and r={r} at least 0 and below 1")
    times = torch.linspace(1, end, steps, dtype=torch.float64).tolist()
    predictor = reverse_diffusion(process, [*times, 0.0])
    rows: list[Row] = []
    for row in predictor.rows:
        alpha, sigma = float(process.alpha(row.t)), float(process.sigma(row.t))
        rows += [Row(t=row.t, to=row.t, a=1 - 2 * r**2, b={0: 2 * r**2 * alpha}, c=2 * r * sigma), row]
    return Plan(rows, process, name=f"predictor-corrector, r = {r}", frame="residual")


def evenly(nfe: int) -> Plan:
    """DDIM at equal steps of t from 1 to 0."""
    return plan("ddim", PROCESS, nfe=nfe, grid=torch.linspace(1, 0, nfe + 1, dtype=torch.float64).tolist())


# -- training -----------------------------------------------------------------------------------------------
def pairs(speakers: Speech, sentences: int, seed: int = 0) -> Pairs:
    """Spectrograms of half a second of clean speech, each with its noisy copy, both divided by the copy's peak.

    They are cut, eight from each, from `sentences` of three digits in a random voice of `speakers` (speed and colour
    varied), in one of the four noises at −2 to 14 dB, babble being spoken by the other speakers.
    """
    g, names, sounds, cuts = Generator().manual_seed(seed), list(speakers), [], []
    for number in range(sentences):
        name = names[whole(g, len(names))]
        clean = sentence(speakers[name], 3, g, varied=True)
        clean = cut(clean, max(CROP, len(clean)), g)
        noise = list(NOISES.values())[whole(g, len(NOISES))]
        others = {n: speakers[n] for n in names if n != name}
        sounds.append(torch.stack([clean, mixed(clean, noise(len(clean), others, g), between(g, -2, 14))]))
        cuts += [(number, whole(g, len(clean) - CROP + 1)) for _ in range(8)]

    def read(rows: Sequence[int], side: int) -> Tensor:
        crops = torch.stack([sounds[n][:, start : start + CROP] for n, start in (cuts[row] for row in rows)])
        return TRANSFORM(crops[:, side] / crops[:, 1].abs().amax(1, keepdim=True).clamp_min(1e-6))

    return Pairs(
        lambda rows: read(rows, 0),
        lambda rows: read(rows, 1),
        len(cuts),
        TRANSFORM.shape(CROP),
        groups=[number for number, _ in cuts],
        sound=TRANSFORM,
        name=f"noisy speech of {', '.join(names)}",
    )


def untrained(widths: Sequence[int], seed: int = 0) -> Denoiser:
    """A fresh model. It predicts the data; the published network predicts the noise, which takes longer to learn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MaskingUNet(TRANSFORM.channels, widths)
    meta = {"sound": TRANSFORM.spec()}
    shape = TRANSFORM.shape(CROP)
    return Denoiser(network, PROCESS, "data", time="thousand", sees_anchor=True, shape=shape, meta=meta)


def trained(speakers: Speech, what: str, folder: Path, steps: int, widths: Sequence[int], device: str) -> Denoiser:
    """The model trained on these speakers, once, and kept in `folder`; a run that was stopped goes on where it stopped.

    E ‖D(x_t, t, y) − x0‖² with t uniform, batch 8, rate 2e-3 falling as a cosine, weight average 0.995.
    """
    path = folder / f"sgmse-v{RECIPE}-{''.join(c for c in what if c.isalnum())}-{steps}"
    if not path.exists():
        data = pairs(speakers, min(1000, steps))
        config = train.TrainConfig(
            data=data.name, steps=steps, batch=8, warmup=50, ema=0.995, device=device, checkpoint_every=500, keep=1
        )
        work = path.with_suffix(".run")
        with train.bar(steps, "speech network") as progress:
            held = data.subset(range(0, len(data), len(data) // 32))
            run = train.fit(untrained(widths), data, config, work, validation=held, resume=True, progress=progress)
        if run.interrupted:
            raise KeyboardInterrupt
        save_model(run.model.cpu(), path)
        shutil.rmtree(work)
    return load_model(path, device=device).eval().requires_grad_(False)


# -- measuring ----------------------------------------------------------------------------------------------
class Utterance(NamedTuple):
    """A sentence, its noise, and the name of the noise."""

    clean: Tensor
    noise: Tensor
    kind: str


def test_set(speakers: Speech, each: int, seed: int) -> list[Utterance]:
    """`each` sentences of every speaker, three digits in one and a half seconds, with the four noises in turn."""
    g, found = Generator().manual_seed(seed), []
    for name, spoken in speakers.items():
        others = {n: v for n, v in speakers.items() if n != name}
        for i in range(each):
            kind = list(NOISES)[i % len(NOISES)]
            clean = cut(sentence(spoken, 3, g), 3 * RATE // 2, g)
            found.append(Utterance(clean, NOISES[kind](len(clean), others, g), kind))
    return found


def noisy(utterances: Sequence[Utterance], snr: float) -> Tensor:
    """(B, T) mixtures at this signal-to-noise ratio in dB."""
    return torch.stack([mixed(u.clean, u.noise, snr) for u in utterances])


def enhance(model: Denoiser, steps: Plan, sounds: Tensor, draws: int = 1, seed: int = 0) -> Tensor:
    """Clean speech (B, T) from noisy speech at 8 kHz: the mean of `draws` runs of a plan."""
    return restore_sound(model, steps, sounds, TRANSFORM, seed=seed, samples=draws).mean(0)


class Found(NamedTuple):
    """Noisy and restored sounds (B, T), and the metrics of the one beside those of the other."""

    noisy: Tensor
    restored: Tensor
    metrics: dict[str, Quality]

    @property
    def gain(self) -> float:
        """The mean improvement in SI-SDR, dB."""
        return self.metrics["SI-SDR"].gain


def measured(model: Denoiser, steps: Plan, utterances: Sequence[Utterance], snr: float, draws: int = 1) -> Found:
    """Mixtures at this signal-to-noise ratio, restored and measured."""
    tally, given = Tally(sound_metrics(RATE)), noisy(utterances, snr)
    restored = enhance(model, steps, given.to(next(model.parameters()).device), draws).cpu()
    tally.add(restored, given, torch.stack([u.clean for u in utterances]))
    return Found(given, restored, {q.name: q for q in tally.result()})


def by_noise(found: Found, utterances: Sequence[Utterance]) -> dict[str, float]:
    """{noise: mean improvement in SI-SDR, dB}."""
    clean = torch.stack([u.clean for u in utterances])
    gains = si_sdr(found.restored, clean) - si_sdr(found.noisy, clean)
    return {kind: float(gains[[u.kind == kind for u in utterances]].mean()) for kind in NOISES}


def candidates() -> dict[str, tuple[Plan, int]]:
    """{name: (plan, draws)}: ways to spend 30 calls on one sentence, from many short runs, averaged, to a single long one.

    SI-SDR is best for the mean of the posterior, from which a single draw is √2 times as far from the truth as the mean is.
    Runs of one call are left out: they never see a state of their own making, and are a regression.
    """
    found = {f"DDIM, {n} × {BUDGET // n} calls": (evenly(BUDGET // n), n) for n in (15, 10, 6, 3, 1)}
    return found | {"predictor–corrector, 1 × 30 calls": (predictor_corrector(PROCESS, BUDGET // 2), 1)}


def reproduce(out: Path, device: str = "cpu", large: bool = False) -> Result:
    """Held-out speakers, four noises, 0, 5 and 10 dB: what 30 evaluations gain over the noisy input.

    What does not carry over: with a network of this size, trained for minutes, D is poor at little noise, so that long
    runs, and the published sampler above all, lose what short ones gain; the report says how much.
    How the 30 are spent (`candidates`) is chosen on new sentences of the training speakers. large: six times the training
    of a network with twice the widths, and four times the sentences.
    """
    what, known, unknown = speech()
    steps, widths, each = (9000, (96, 128, 192), 32) if large else (1500, (48, 64, 96), 8)
    model = trained(known, what, out.parent, steps, widths, device)
    tuning = test_set(known, 2, seed=1)
    ways = candidates()
    choice = {name: measured(model, way, tuning, 5.0, n).gain for name, (way, n) in ways.items()}
    best = max(choice, key=lambda name: choice[name])
    way, draws = ways[best]
    model.plans[len(way)] = way  # unstir restore out/sgmse/model noisy.wav --nfe 2 --n 15
    save_model(model, out / "model")

    tests = test_set(unknown, each, seed=3)  # sentences and noises that nothing was chosen on
    levels = {snr: measured(model, way, tests, snr, draws) for snr in SNRS}
    others = {
        "the published sampler, 30 steps of two calls": measured(model, predictor_corrector(PROCESS), tests, 5.0),
        "regression, 30 × 1 calls": measured(model, evenly(1), tests, 5.0, BUDGET),
    }
    middle, noises = levels[5.0], by_noise(levels[5.0], tests)
    heard = middle.metrics["ESTOI"]
    claims = [
        at_least(f"held-out speakers at 5 dB: SI-SDR gained with {BUDGET} calls, dB ({best})", middle.gain, 4.0),
        at_least("the same: ESTOI, against the noisy input − 0.01", heard.restored, heard.input - 0.01),
        at_least("at 0 dB: SI-SDR gained, dB", levels[0.0].gain, 0.0),
        at_least("at 10 dB: SI-SDR gained, dB", levels[10.0].gain, 0.0),
    ]
    page = report(
        "SGMSE+",
        f"Speech: {what}; {', '.join(known)} to learn from, {' and '.join(unknown)} held out; {len(tests)} sentences of 1.5 s "
        f"at 8 kHz. A network of {sum(p.numel() for p in model.parameters()):,} weights, trained for {steps} steps.",
        claims,
    )
    rows = [
        (f"{snr:g} dB", q.name, q.input, q.restored, q.gain) for snr, found in levels.items() for q in found.metrics.values()
    ]
    page.table(rows, ["noisy at", "metric", "noisy", "restored", "gain"], caption=best)
    page.table(list(noises.items()), ["noise, 5 dB", "SI-SDR gained, dB"])
    page.table(list(choice.items()), ["training speakers, 5 dB", "SI-SDR gained, dB"], best={"SI-SDR gained, dB": "max"})
    page.table([(k, v.gain) for k, v in others.items()], ["for comparison, held-out speakers, 5 dB", "SI-SDR gained, dB"])
    for i, utterance in enumerate(tests[: len(NOISES)]):
        sounds = {"noisy": middle.noisy[i], "restored": middle.restored[i], "clean": utterance.clean}
        panels = {name: TRANSFORM.decibels(x[None])[0] for name, x in sounds.items()}
        plot = spectrogram_plot(panels, RATE, 1.5, title=utterance.kind)
        (out / f"{utterance.kind}.png").write_bytes(plot)
        page.picture(plot, f"A held-out speaker in {utterance.kind} noise at 5 dB, dB below the loudest bin of each.")
        for name, x in sounds.items():
            write_wav(out / f"{utterance.kind}-{name}.wav", 0.9 * x[None] / peak(x), RATE)
    page.save(out / "report.html")
    figures = {
        "speech": what,
        "held out": list(unknown),
        "by level": {f"{snr:g} dB": _record(found) for snr, found in levels.items()},
        "SI-SDR gained at 5 dB by noise": noises,
        "SI-SDR gained on training speakers": choice,
        "for comparison at 5 dB": {name: _record(found) for name, found in others.items()},
    }
    return Result(claims, figures)


def _record(found: Found) -> dict[str, dict[str, float]]:
    return {name: {"noisy": q.input, "restored": q.restored} for name, q in found.metrics.items()}
