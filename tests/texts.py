"""Real text that ships with a dependency: the descriptions of scikit-learn's data sets."""

from importlib.resources import files

HELD_OUT = {"valid": "kddcup99.rst", "test": "wine_data.rst"}  # all their characters are in others too


def descriptions():
    """``{name of the file: text}``"""
    found = (file for file in files("sklearn.datasets.descr").iterdir() if file.name.endswith(".rst"))
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(found, key=lambda file: file.name)}


def write_corpus(folder):
    """Write ``train.txt``, ``valid.txt`` and ``test.txt``."""
    texts = descriptions()
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in HELD_OUT.items():
        (folder / f"{split}.txt").write_text(texts.pop(name), encoding="utf-8")
    (folder / "train.txt").write_text("".join(texts.values()), encoding="utf-8")
    return folder
