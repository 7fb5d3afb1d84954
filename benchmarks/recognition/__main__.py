"""Prints the confidence of the offline AI provider beside its share of right answers: python -m benchmarks.recognition

Takes one to two minutes. Needs the extra [local]. With --save FOLDER the pictures are written there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.recognition.calibration import ask_all, report
from benchmarks.recognition.pictures import held_out, pictures


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.recognition", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--save", type=Path, help="write the pictures into this folder and ask nothing")
    parser.add_argument("--each", action="store_true", help="show each answer too")
    options = parser.parse_args()
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        for picture in (*pictures(), *held_out()):
            picture.draw()[0].save(options.save / f"{picture.name.replace(' ', '-')}.jpg", quality=88)
        return
    for title, asked in (("The set the rules were made with", pictures()), ("Pictures held out", held_out())):
        print("\n".join((title, "", *report(ask_all(asked, loud=options.each)), "")))


if __name__ == "__main__":
    main()
