"""Make decoupling-study.png beside this file: `python docs/pictures/decoupling.py`."""

from pathlib import Path

from capalloc.decoupling.command import save_picture
from capalloc.decoupling.study import decoupling_study

if __name__ == "__main__":
    save_picture(decoupling_study(progress=True), Path(__file__).with_name("decoupling-study.png"))
