"""Where a user's own module is looked for. Without PyTorch: drivers and workers' starts need it."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from workers.errors import UserError

FOLDERS = "VQATLAS_MODULES"
"""Environment variable: folders that own modules are looked for in, after the working directory."""


def module_folders() -> list[str]:
    """Where own modules are looked for before installed packages are asked."""
    named = [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
    return [str(Path(folder).absolute()) for folder in (".", *named)]


def find_module(name: str, target: str) -> ModuleType:
    """The module that ``model.target`` names."""
    folders = module_folders()
    sys.path += [folder for folder in folders if folder not in sys.path]
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"model.target: {target} imports {error.name}, which is not installed here; "
                "install it on every machine that runs workers"
            ) from None
        raise UserError(
            f"model.target: no module {error.name!r} in {', '.join(folders)} nor installed. Run "
            f"from the folder it lies in, name its folder in {FOLDERS}, or install it"
        ) from None
