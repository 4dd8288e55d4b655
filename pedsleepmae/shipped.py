"""What ships: the checkpoint with its probes, and the settings of configs/.

In the repository these folders lie beside the package, in an installed one inside it
(pyproject.toml); their files go by their names in the repository, such as `checkpoint/probes.npz`.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
FOLDERS = ("checkpoint", "configs")


def shipped_path(name: str | Path) -> Path:
    """Where a file of FOLDERS lies."""
    is_installed = (PACKAGE / FOLDERS[0]).is_dir()
    return (PACKAGE if is_installed else PACKAGE.parent) / name


def find_file(path: str | Path) -> Path:
    """The file itself where there is one, else the one that ships under this name, if any does."""
    path = Path(path)
    if path.exists() or path.parts[:1] not in {(folder,) for folder in FOLDERS}:
        return path
    return ours if (ours := shipped_path(path)).is_file() else path
