"""Make linear-study.png beside this file: `python docs/pictures/linear.py`."""

from pathlib import Path

from capalloc.linear.command import draw
from capalloc.linear.study import linear_study

if __name__ == "__main__":
    Path(__file__).with_name("linear-study.png").write_bytes(draw(linear_study(progress=True)))
