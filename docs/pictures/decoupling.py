"""Make decoupling-study.png beside this file: `python docs/pictures/decoupling.py`."""

from pathlib import Path

from capalloc.app.studies.decoupling_figure import plot_decoupling_study
from capalloc.app.studies.decoupling_study import decoupling_study
from capalloc.results.plots import save_figure

if __name__ == "__main__":
    save_figure(
        plot_decoupling_study(decoupling_study(progress=True)), Path(__file__).with_name("decoupling-study.png")
    )
