"""nbval settings for the notebooks."""
import os

# The kernels inherit these; tools/chapters.py sets the same ones.
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")


def pytest_collection_modifyitems(items):
    """Let nbval compare cells whose count nbdev_clean has set to null.

    nbval reads a null execution_count as "never run".
    """
    for item in items:
        cell = getattr(item, "cell", None)  # only nbval items have one
        if cell is not None and cell.execution_count is None:
            cell.execution_count = 0
