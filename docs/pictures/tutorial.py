"""Draw docs/pictures/tutorial-*.png: run the blocks of docs/tutorial.md, which save them.

python docs/pictures/tutorial.py
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import matplotlib as mpl
import torch

HERE = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Run the page as its reader does, and keep the pictures."""
    mpl.use("agg")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(os.chdir, Path.cwd())
        os.chdir(folder)
        for block in BLOCK.finditer((HERE.parent / "tutorial.md").read_text(encoding="utf-8")):
            exec(compile(block[1], "tutorial.md", "exec"), names)
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, HERE / picture.name)


if __name__ == "__main__":
    main()
