"""Recipes that come with the package, found by bare name: ``baseline`` is recipes/baseline.toml.

`gptpack/recipes` is a link to the folder `recipes` at the top of the checkout; a wheel holds the
files themselves.
"""

from pathlib import Path

from gptpack.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Bare names of the packaged recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """The recipe's file: `name_or_path` itself where it is a file, else the packaged one so named.

    Raises:
        ConfigError: neither a file nor the name of a packaged recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    packaged = FOLDER / f"{path.name}.toml"
    if len(path.parts) == 1 and packaged.is_file():
        return packaged
    raise ConfigError(
        f"recipe '{name_or_path}' is not a file, and the packaged recipes are: "
        f"{', '.join(recipe_names())}"
    )
