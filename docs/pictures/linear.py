"""Make linear-study.png beside this file: `python docs/pictures/linear.py`."""

from pathlib import Path

from capalloc.app.studies.linear_command import draw
from capalloc.app.studies.linear_study import linear_study

if __name__ == "__main__":
    Path(__file__).with_name("linear-study.png").write_bytes(draw(linear_study(progress=True)))
