"""Pictures of what a run shows: ``python docs/screenshots.py RUN LOG`` (Chromium has to be there).

RUN is the folder of a run, LOG what it printed. ``docs/pictures`` gets the top of its report,
samples and tokens there, the log as a terminal shows it, and rows of ``task=inspect``.
"""

import html
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
WIDTH, TALL = 900, 6000
BEGINS, ENDS = "iteration 1/", "What it writes"
"""What of a log is shown."""
NOISE = "`weights_only`", "`Trainer."
"""Remarks of others, which a terminal shows too."""
COLOURS = 128
"""What a picture is reduced to, so that it stays small."""
TERMINAL = """<body style="background:#1e1e28;color:#e6e6e6;margin:16px"><pre style="font:14px/1.35
'DejaVu Sans Mono',monospace;white-space:pre-wrap">{text}</pre></body>"""


def shot(page: Path, name: str, top: int = 0, bottom: int | None = None) -> None:
    """Take a page, and keep the rows of pixels from ``top`` to ``bottom``, or to where it ends."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("there is no Chromium: apt-get install chromium")
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.png"
        flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
        size = [f"--window-size={WIDTH},{TALL}", f"--screenshot={whole}"]
        subprocess.run([browser, *flags, *size, page.as_uri()], check=True, capture_output=True)
        picture = Image.open(whole).convert("RGB")
    if bottom is None:
        bottom = min(ImageChops.difference(picture, blank(picture)).getbbox()[3] + 16, TALL)
    cut = picture.crop((0, top, WIDTH, bottom))
    cut.quantize(COLOURS).save(PICTURES / f"{name}.png", optimize=True)
    print(PICTURES / f"{name}.png", flush=True)


def blank(picture: Image.Image) -> Image.Image:
    """All of the colour that the picture has in its last corner."""
    return Image.new("RGB", picture.size, picture.getpixel((WIDTH - 1, TALL - 1)))


def main(run: Path, log: Path) -> int:
    """Take all of them."""
    with TemporaryDirectory() as folder:
        terminal, inspected = Path(folder) / "terminal.html", Path(folder) / "inspect.html"
        text = BEGINS + log.read_text().partition(BEGINS)[2].partition(ENDS)[0]
        text = "\n".join(line for line in text.splitlines() if not line.startswith(NOISE))
        terminal.write_text(TERMINAL.format(text=html.escape(text)))
        shot(terminal, "terminal")
        shot(run / "report.html", "report", 0, 900)
        shot(run / "report.html", "report_samples", 2225, 2745)
        shot(run / "report.html", "report_tokens", 4300, 4730)
        command = [sys.executable, str(ROOT / "train.py"), "task=inspect", "algo=dpo"]
        command += [f"out={inspected}", f"hydra.run.dir={folder}/run"]
        subprocess.run(command, check=True, capture_output=True)
        shot(inspected, "inspect", 832, 1395)
    return 0


def arguments(words: Sequence[str]) -> tuple[Path, Path]:
    if len(words) != 2:
        raise SystemExit("python docs/screenshots.py RUN LOG")
    return Path(words[0]).resolve(), Path(words[1]).resolve()


if __name__ == "__main__":
    sys.exit(main(*arguments(sys.argv[1:])))
