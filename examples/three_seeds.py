"""Three pictures of one brief, and where the time went: the library without the terminal.

./packshot python examples/three_seeds.py [MODEL FOLDER [OUTPUT FOLDER]]
"""

from __future__ import annotations

import sys

import packshot


def main(model: str = "packshot-mini", out: str = "out") -> None:
    options = packshot.Options(
        "white sneakers on a sandy beach, bright daylight",
        count=3,
        seed=7,
        steps=12,
        model=model,
        out=out,
    )
    plan = packshot.plan(options)  # whatever can be refused is refused here, before torch loads
    print("caption:", plan.caption.text)

    engine = packshot.load_engine(plan)
    delivery = packshot.render(plan, engine, on_step=tell)
    for picture in delivery.pictures:
        print(picture.path)
    for part in delivery.usage:
        print(f"{part.stage:8} {part.seconds:7.3f} s on {part.device}")


def tell(progress: packshot.Progress) -> None:
    if progress.step == progress.steps:
        print(f"picture {progress.picture} of {progress.pictures}")


if __name__ == "__main__":
    main(*sys.argv[1:])
