"""The options that several commands take, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from packshot.core.types import PRECISIONS, SAMPLERS, SCHEDULES, SPACINGS
from packshot.studio.defaults import MASKED_STRENGTH, OUT, PREVIEW_NAME, STRENGTH

__all__ = [
    "AsJson",
    "Brief",
    "BriefsFile",
    "CaptionBy",
    "Columns",
    "Count",
    "Device",
    "FineTexture",
    "Graphs",
    "Guidance",
    "Image",
    "Invariant",
    "Like",
    "Mask",
    "Model",
    "Negative",
    "Out",
    "Precision",
    "Preview",
    "Raw",
    "Sampler",
    "Schedule",
    "Seed",
    "Sharpen",
    "SheetOut",
    "ShowCaption",
    "Size",
    "Spacing",
    "Steps",
    "Strength",
    "Strict",
    "VaePrecision",
]

PICTURE = "Picture"
SAMPLING = "Sampling"
START = "A picture to start from"
MACHINE = "Model and machine"


def _any_of(names: tuple[str, ...]) -> str:
    return ", ".join(names)


Size = Annotated[
    str | None,
    typer.Option(
        metavar="S | WxH",
        help="Pixels of the finished picture, multiples of 8.",
        show_default="the model's own",
        rich_help_panel=PICTURE,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Picture k uses seed + k.", show_default="random", rich_help_panel=PICTURE),
]
Negative = Annotated[
    str, typer.Option(metavar="TEXT", help="What to steer away from.", rich_help_panel=PICTURE)
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw", help="Take the brief as the caption, unchanged.", rich_help_panel=PICTURE
    ),
]
CaptionBy = Annotated[
    str | None,
    typer.Option(
        "--caption",
        metavar="WHO",
        help="Who rewrites the brief: rules, llm, or none (the same as --raw).",
        show_default="llm if configured",
        rich_help_panel=PICTURE,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Fail if the model was not shown the brief's product.",
        rich_help_panel=PICTURE,
    ),
]
Sharpen = Annotated[
    bool,
    typer.Option(
        "--sharpen/--no-sharpen", help="Sharpen the finished picture.", rich_help_panel=PICTURE
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A picture to start from, instead of noise.", rich_help_panel=START
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How much of it is made anew, above 0 to 1.",
        show_default=f"{STRENGTH:g}, {MASKED_STRENGTH:g} with --mask",
        rich_help_panel=START,
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="White where it may change, and of its size.", rich_help_panel=START
    ),
]
Steps = Annotated[int, typer.Option(help="Denoising steps, 1 to 1000.", rich_help_panel=SAMPLING)]
Guidance = Annotated[
    float,
    typer.Option(
        help="How closely to follow the caption, 1 (off) to 50.", rich_help_panel=SAMPLING
    ),
]
Sampler = Annotated[
    str, typer.Option(help=f"One of {_any_of(SAMPLERS)}.", rich_help_panel=SAMPLING)
]
Schedule = Annotated[
    str, typer.Option(help=f"One of {_any_of(SCHEDULES)}.", rich_help_panel=SAMPLING)
]
Spacing = Annotated[
    str | None,
    typer.Option(
        help=f"One of {_any_of(SPACINGS)}.",
        show_default="the model's own",
        rich_help_panel=SAMPLING,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME | FOLDER",
        help="A packaged model, or a folder in diffusers' layout.",
        rich_help_panel=MACHINE,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)]
Precision = Annotated[
    str, typer.Option(help=f"One of {_any_of(PRECISIONS)}.", rich_help_panel=MACHINE)
]
VaePrecision = Annotated[
    str,
    typer.Option(help="The same, for the decoder: fp32 keeps hard edges.", rich_help_panel=MACHINE),
]
Graphs = Annotated[
    bool,
    typer.Option(
        help="On a GPU, capture each step once and replay it; without, to look for a leak.",
        rich_help_panel=MACHINE,
    ),
]
Invariant = Annotated[
    bool,
    typer.Option(
        "--invariant",
        help="On a GPU, one picture at a time: a seed's bits are then the same in company.",
        rich_help_panel=MACHINE,
    ),
]
FineTexture = Annotated[
    bool,
    typer.Option(
        "--fine-texture",
        help="Cloth and the like: made in bf16 where --precision is fp8 or int8.",
        rich_help_panel=MACHINE,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Brief = Annotated[
    str,
    typer.Argument(metavar="BRIEF", help='What to photograph: "white sneakers on a sandy beach".'),
]
Count = Annotated[int, typer.Option("-n", help="How many pictures.")]
Out = Annotated[
    str | None,
    typer.Option(
        metavar="FILE | FOLDER",
        help="A .png, .jpg or .webp, or where to put it.",
        show_default=f"{OUT}/",
    ),
]
Preview = Annotated[
    bool,
    typer.Option("--preview", help=f"Keep {PREVIEW_NAME}, beside the picture, up to date."),
]
ShowCaption = Annotated[bool, typer.Option("--show-caption", help="Print what the model is told.")]
Like = Annotated[
    Path | None,
    typer.Option(metavar="PICTURE", help="Make a picture of ours again, bit for bit."),
]
SheetOut = Annotated[str, typer.Option(metavar="FILE", help="The sheet: a .png, .jpg or .webp.")]
Columns = Annotated[int, typer.Option(help="Tiles in a row, 1 to 12.")]
BriefsFile = Annotated[
    Path, typer.Argument(metavar="BRIEFS.txt", help="One brief a line; # starts a comment.")
]
