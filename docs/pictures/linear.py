"""Make linear-study.png beside this file: `python docs/pictures/linear.py`."""

from pathlib import Path

from capalloc.app.studies.linear_figure import plot_linear_study
from capalloc.app.studies.linear_study import linear_study
from capalloc.results.plots import save_figure

if __name__ == "__main__":
    save_figure(plot_linear_study(linear_study(progress=True)), Path(__file__).with_name("linear-study.png"))
