"""Draws what commands print on a terminal as SVG pictures: ``python docs/draw_screens.py``.

Each screen is recorded from a real run in a pseudo-terminal of 120 columns, in an empty folder, and drawn by `rich`.
The training starts from the model that comes with the package and takes a few minutes; QM9 is read from ``data/qm9``
of the current folder, and prepared there if need be.
"""

import os
import pty
import shlex
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

FOLDER = Path(__file__).parent / "screens"
SMALL = """\
data: {init_args: {num_val: 200}}
trainer:
  max_steps: 40
  val_check_interval: 20
  callbacks:
    - {class_path: unite.callbacks.WeightAveraging, init_args: {decay: 0.9}}
    - {class_path: unite.callbacks.GenerationMetrics, init_args: {num_samples: 50, num_steps: 50, solver: ancestral}}
"""
SCREENS = {
    "help": "unite --help",
    "help_sample": "unite sample --help",
    "sample": "unite sample qm9 -n 24",
    "fit": "unite fit qm9_small --config small.yaml --init_from qm9 --lr 1e-3",
    "report": "unite report runs/qm9_small-small",
}
WIDTH = 120
#: rich's own page without its fonts, which would be fetched from the network.
PAGE = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>{lines}</defs>
{chrome}<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def record(command: str) -> str:
    """What a command writes to a terminal, with its colours."""
    written = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        written.extend(data)
        return data

    os.environ.update(COLUMNS=str(WIDTH), TERM="xterm-256color")
    if status := pty.spawn(shlex.split(command), read):
        raise SystemExit(f"{command}: exit status {status}")
    return written.decode()


def last_of_each_line(text: str) -> str:
    """The text without what was written over: progress bars as they ended."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(line.removeprefix("\x1b[A") for line in lines)


def draw(title: str, command: str, text: str) -> None:
    """Write a screen as ``screens/TITLE.svg``."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w", encoding="utf8"))  # noqa: SIM115
    console.print(Text.assemble(("$ ", "bold"), (command, "bold")))
    console.print(Text.from_ansi(last_of_each_line(text)))
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{title}.svg").write_text(
        console.export_svg(title="unite", theme=DIMMED_MONOKAI, code_format=PAGE, unique_id=title),
        encoding="utf8",
    )


def main() -> None:
    """Record and draw all screens."""
    data = Path("data/qm9").resolve()
    os.chdir(tempfile.mkdtemp())
    Path("small.yaml").write_text(SMALL)
    Path("data").mkdir()
    Path("data/qm9").symlink_to(data)
    for title, command in SCREENS.items():
        draw(title, command, record(command))


if __name__ == "__main__":
    main()
