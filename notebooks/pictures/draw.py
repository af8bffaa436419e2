"""Draw the pictures that stand around the notebooks: where each chapter stands, and its cover for the contents page.

    python notebooks/pictures/draw.py

`where_NN.svg`: the pipeline with the chapter's stages filled. `cover_NN.png`: the first picture among the outputs of the
notebook, made small (needs Pillow, which comes with matplotlib).
"""

import base64
import io
import json
from pathlib import Path

from PIL import Image

STAGES = ("prepare data", "pretrain", "represent", "fine-tune", "evaluate", "deploy")
CHAPTERS = {
    1: (0,),
    2: (0,),
    3: (2,),
    4: (1,),
    5: (2,),
    6: (3,),
    7: (4,),
    8: (5,),
    9: (1, 2, 3),
}
BLUE, GREY = "#1F83C6", "#8A8F98"
BOX, GAP, HEIGHT = 104, 22, 34
COVER_WIDTH, COLOURS = 360, 48


def where(stages: tuple[int, ...]) -> str:
    """The pipeline as SVG, the chapter's stages filled."""
    width = len(STAGES) * BOX + (len(STAGES) - 1) * GAP + 4
    parts = []
    for number, name in enumerate(STAGES):
        left = 2 + number * (BOX + GAP)
        here = number in stages
        fill, ink = (BLUE, "white") if here else ("none", GREY)
        parts.append(
            f'<rect x="{left}" y="2" width="{BOX}" height="{HEIGHT}" rx="7" fill="{fill}" '
            f'stroke="{BLUE if here else GREY}" stroke-width="1.5"/>'
            f'<text x="{left + BOX / 2:g}" y="{HEIGHT / 2 + 6:g}" fill="{ink}" text-anchor="middle">{name}</text>'
        )
        if number + 1 < len(STAGES):
            start, end, middle = left + BOX + 3, left + BOX + GAP - 3, 2 + HEIGHT / 2
            parts.append(
                f'<path d="M{start} {middle:g}H{end}m-5 -4l5 4l-5 4" fill="none" stroke="{GREY}" stroke-width="1.5"/>'
            )
    title = "Pipeline: " + " → ".join(f"[{n}]" if i in stages else n for i, n in enumerate(STAGES))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT + 4}" '
        f'viewBox="0 0 {width} {HEIGHT + 4}" role="img" font-family="sans-serif" font-size="14">'
    )
    return "\n".join([head, f"<title>{title}</title>", *parts, "</svg>", ""])


def cover(notebook: Path) -> bytes:
    """The first picture of a notebook as a small PNG with few colours, no file metadata."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    pictures = [
        output["data"]["image/png"]
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    if not pictures:
        raise SystemExit(f"{notebook} shows no picture: run it and save it with its outputs.")
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0]))).convert("RGB")
    image = image.resize((COVER_WIDTH, round(image.height * COVER_WIDTH / image.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.quantize(COLOURS).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def main() -> None:
    here = Path(__file__).parent
    for number, stages in CHAPTERS.items():
        (here / f"where_{number:02d}.svg").write_text(where(stages), encoding="utf-8")
    for notebook in sorted(here.parent.glob("[0-9][0-9]_*.ipynb")):
        (here / f"cover_{notebook.name[:2]}.png").write_bytes(cover(notebook))


if __name__ == "__main__":
    main()
