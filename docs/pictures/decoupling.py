"""Make decoupling-study.png beside this file: `python docs/pictures/decoupling.py`."""

from pathlib import Path

from capalloc.app.studies.decoupling_plot import plot_study
from capalloc.app.studies.decoupling_profile import decoupling_study
from capalloc.results.plots import save_figure

if __name__ == "__main__":
    save_figure(plot_study(decoupling_study(progress=True)), Path(__file__).with_name("decoupling-study.png"))
