"""Asks the offline AI provider about each picture, and compares how sure it is with how often it is right."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from benchmarks.recognition.pictures import Picture
from pipeline.plugins.ai_local import work
from pipeline.plugins.ai_local.colors import name_colorway
from pipeline.plugins.ai_local.lexicon import plain
from pipeline.plugins.ai_local.subject import find_on_white, find_subject

BANDS = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
MIN_OVERLAP = 0.85  # of a mask and the product, as a share of both together; less is a product cut to pieces
READ_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The provider's answer about one picture: (value, confidence) each.

    turn: how it turned the photo, None for not at all.
    overlap: of its cut-out with the product, None without a cut-out.
    text: the lettering that it read.
    """

    picture: Picture
    brand: tuple[str, float]
    model: tuple[str, float]
    colorway: tuple[str, float]
    turn: int | None
    overlap: float | None
    text: list[str] = field(default_factory=list)

    def claims(self) -> Iterator[tuple[str, float, bool]]:
        """Yield (field, confidence, whether it is right) of each value in the answer."""
        truth = self.picture
        for name, (value, sure), right in (("brand", self.brand, truth.brand), ("model", self.model, truth.model)):
            if value:
                yield name, sure, plain(value) == plain(right)
        if self.colorway[0]:
            yield "colorway", self.colorway[1], self.colorway[0].split("/")[0] in truth.colors

    @property
    def is_turned_wrongly(self) -> bool:
        """True when an upright picture was turned, or a turned picture was not turned upright."""
        return self.turn is not None and self.turn != self.picture.turn_back


def ask(picture: Picture) -> Answer:
    """Return the provider's answer, worked out in this process."""
    photo, product = picture.draw()
    read = work.read(*photo.size, photo.tobytes(), picture.category, READ_SECONDS)
    if read["turn"] is not None:
        photo = photo.transpose(read["turn"])
    stands = picture.turn_back if read["turn"] is None else read["turn"]
    pixels = np.asarray(photo)
    subject = find_subject(pixels, [np.array(box, dtype=np.float32) for box in read["boxes"]])
    colorway = name_colorway(pixels, find_on_white(pixels) if subject is None else subject)
    overlap = None
    if subject is not None and not (read["turn"] is not None and stands != picture.turn_back):
        truth = product if read["turn"] is None else np.rot90(product, {2: 1, 3: 2, 4: 3}[int(read["turn"])])
        found = subject > 0.5
        overlap = float((found & truth).sum() / max(1, (found | truth).sum()))
    return Answer(
        picture, tuple(read["brand"]), tuple(read["model"]), (colorway.value, colorway.confidence), read["turn"],
        overlap, read.get("text", []),
    )


def report(answers: Iterable[Answer]) -> list[str]:
    """Return the table of confidences and right answers, line by line, and what else was counted."""
    answers = list(answers)
    claims = [claim for answer in answers for claim in answer.claims()]
    lines = ["| confidence | brand right | model right | colorway right |", "|---|---|---|---|"]
    for low, high in zip(BANDS, BANDS[1:], strict=False):
        cells = []
        for name in ("brand", "model", "colorway"):
            of_band = ((sure, right) for each, sure, right in claims if each == name and low <= sure)
            rights = [right for sure, right in of_band if sure < high or high == 1]
            cells.append(f"{sum(rights)} of {len(rights)} ({sum(rights) / len(rights):.0%})" if rights else "-")
        lines.append(f"| {low:.2f} - {high:.2f} | {' | '.join(cells)} |")
    known = [answer for answer in answers if answer.picture.brand]
    named = sum(plain(answer.brand[0]) == plain(answer.picture.brand) for answer in known)
    modelled = [answer for answer in answers if answer.picture.model]
    exact = sum(plain(answer.model[0]) == plain(answer.picture.model) for answer in modelled)
    turned = [answer for answer in answers if answer.picture.turn and answer.picture.brand]
    upright = sum(answer.turn == answer.picture.turn_back for answer in turned)
    cut = [answer.overlap for answer in answers if answer.overlap is not None]
    whole = sum(overlap >= MIN_OVERLAP for overlap in cut)
    return [
        *lines,
        "",
        f"{len(answers)} pictures. Brand named: {named} of {len(known)}; model: {exact} of {len(modelled)}.",
        f"Turned wrongly: {sum(answer.is_turned_wrongly for answer in answers)}; lettered ones set upright: {upright} "
        f"of {len(turned)}.",
        f"Cut out: {len(cut)}, of which {whole} whole.",
    ]


def ask_all(pictures: Iterable[Picture], *, loud: bool = False) -> list[Answer]:
    """Return the answers to all pictures; loud: each is printed as it comes."""
    answers = []
    for picture in pictures:
        answers.append(answer := ask(picture))
        if loud:
            wrong = [f"{name} {sure:.2f}" for name, sure, right in answer.claims() if not right]
            print(f"{picture.name}: {answer.brand} {answer.model} {answer.colorway} turn {answer.turn} "
                  f"cut {answer.overlap and round(answer.overlap, 2)} {answer.text} {'WRONG ' if wrong else ''}"
                  f"{', '.join(wrong)}", file=sys.stderr, flush=True)
    return answers
