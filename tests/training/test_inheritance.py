"""Recipes extend other files: values are merged, chains are limited, and the recipe of a run is self-contained."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from runs import SMALL, quiet

from imgproc_attn import cli
from imgproc_attn.recipe import list_recipes, load_recipe
from imgproc_attn.recipe.inheritance import MAX_FILES, merge, read_recipe
from imgproc_attn.recipe.library import packaged_files
from imgproc_attn.recipe.loading import recipe_text
from imgproc_attn.recipe.schema import Recipe
from imgproc_attn.recipe.yaml_text import MAX_NODES, read_yaml

SHARED = """
title: shared
model: {name: plain_vit_tiny, kernel: {name: elliptical, detach: true}, residual: twicing, drop_path_rate: 1e-1}
data: {name: digits, test_split: test, num_classes: 10, input_size: [1, 8, 8], mean: [0.5], workers: 0}
augmentation: {hflip: 0.5}
adversarial: {eps: 4/255, steps: 2}
optimizer: {name: adamw, lr: 1e-3, clip_grad: 1.0}
schedule: {epochs: 3, warmup_epochs: 1}
run: {batch_size: 8, amp: bfloat16}
comparison: {seeds: [0, 1], variants: {a: {residual: sos}, b: {depth: 1}}}
"""
# Each entry is the text of a child recipe and the values that it changes.
MERGED = [
    ("title: mine", {"title": "mine"}),
    ("optimizer: {lr: 2e-3}", {"optimizer.lr": 2e-3}),
    ("optimizer: {clip_grad: null}", {"optimizer.clip_grad": None}),
    ("data: {input_size: [3, 8, 8], mean: null}", {"data.input_size": [3, 8, 8], "data.mean": None}),
    ("data: {test_split: null}", {"data.test_split": None}),
    ("data: {workers: null}", {"data.workers": 2}),
    ("augmentation: null", {"augmentation.hflip": 0.0}),
    ("adversarial: null", {"adversarial": None}),
    ("adversarial: {steps: null}", {"adversarial.steps": 3}),
    ("comparison: {seeds: [7]}", {"comparison.seeds": [7]}),
    ("comparison: {variants: {c: {depth: 2}}}", {"comparison.variants.c": {"depth": 2}}),
    ("comparison: {variants: {a: {depth: 2}}}", {"comparison.variants.a.depth": 2}),
    ("comparison: {variants: {a: {residual: null, depth: 3}}}", {"comparison.variants.a": {"depth": 3}}),
    ("model: {name: nlm_vit_tiny}", {"model.name": "nlm_vit_tiny"}),
    ("model: {kernel: gaussian}", {"model.kernel": "gaussian"}),
    ("model: {kernel: {name: gaussian}}", {"model.kernel.name": "gaussian"}),
    ("model: {kernel: {name: gaussian, detach: null}}", {"model.kernel": {"name": "gaussian"}}),
    ("model: {residual: {name: sos, gate: 0.5}}", {"model.residual": {"name": "sos", "gate": 0.5}}),
    ("model: {norm_layer: null}", {"model.norm_layer": None}),
    ("{}", {}),
]


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def child(folder, text, extends="shared.yaml"):
    """Write a file with ``text`` that extends ``SHARED``."""
    text = "" if text == "{}" else text
    return write(folder, mine=f"extends: {extends}\n{text}\n", shared=SHARED)


def put(content, key_path, value):
    *sections, key = key_path.split(".")
    for section in sections:
        content = content[section]
    content[key] = value


@pytest.mark.parametrize(("text", "changed"), MERGED, ids=[text for text, _ in MERGED])
def test_values_are_merged_key_by_key(text, changed, tmp_path):
    recipe = load_recipe(child(tmp_path, text))
    expected = load_recipe(tmp_path / "shared.yaml").model_dump()
    for key_path, value in changed.items():
        put(expected, key_path, value)
    assert recipe.model_dump() == expected
    assert list(recipe.comparison.variants)[:2] == ["a", "b"], "the baseline stays"


@pytest.mark.parametrize(
    ("text", "key_path"),
    [("residual: null", "residual"), ("kernel: null", "kernel"), ("drop_path_rate: null", "drop_path_rate")],
)
def test_null_removes_an_inherited_keyword_of_a_model(text, key_path, tmp_path):
    found = load_recipe(child(tmp_path, f"model: {{name: nlm_vit_tiny, {text}}}")).model.model_dump()
    expected = load_recipe(tmp_path / "shared.yaml").model.model_dump() | {"name": "nlm_vit_tiny"}
    del expected[key_path]
    assert found == expected


def test_null_removes_an_inherited_variant_and_the_comparison(tmp_path):
    assert list(load_recipe(child(tmp_path, "comparison: {variants: {a: null}}")).comparison.variants) == ["b"]
    assert load_recipe(child(tmp_path, "comparison: null")).comparison is None


def test_null_on_the_command_line_acts_as_in_a_file():
    recipe = load_recipe("quickstart", ["comparison.variants.twicing=null", "schedule.warmup_epochs=null"])
    assert list(recipe.comparison.variants) == ["plain", "bilateral + twicing", "untied + twicing"]
    assert recipe.schedule.warmup_epochs == type(recipe.schedule).model_fields["warmup_epochs"].default
    for unknown in ("comparison.variants.twicng=null", "schedule.epoch=null"):
        with pytest.raises(ValueError, match="twicng|epoch"):
            load_recipe("quickstart", [unknown])


def test_a_title_has_no_default(tmp_path):
    with pytest.raises(ValueError, match="title: Field required"):
        load_recipe(child(tmp_path, "title: null"))


def test_merging_changes_neither_side():
    base, changes = {"run": {"seed": 1}, "model": {"a": {"b": 1}}}, {"run": {"amp": None}, "model": {"a": {"c": None}}}
    assert merge(base, changes, Recipe) == {"run": {"seed": 1, "amp": None}, "model": {"a": {"b": 1, "c": None}}}
    assert base == {"run": {"seed": 1}, "model": {"a": {"b": 1}}}
    assert changes == {"run": {"amp": None}, "model": {"a": {"c": None}}}


def test_the_command_line_changes_what_is_inherited(tmp_path):
    recipe = load_recipe(child(tmp_path, "title: mine"), ["optimizer.lr=0.5", "model.kernel.detach=false"])
    assert recipe.optimizer.lr == 0.5
    assert recipe.model.model_dump()["kernel"] == {"name": "elliptical", "detach": False}
    with pytest.raises(ValueError, match=r"extends must be a key of a file, got the override 'extends=x.yaml'\. Write"):
        load_recipe(tmp_path / "mine.yaml", ["extends=x.yaml"])


def test_files_are_looked_for_beside_the_file_that_names_them(tmp_path, monkeypatch):
    for folder in ("a", "b", "here"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "a", mine="extends: ../b/between.yaml\ntitle: mine\n")
    write(tmp_path / "b", between="extends: shared.yaml\nrun: {seed: 3}\n", shared=SHARED)
    write(tmp_path / "here", shared="title: another\n")
    monkeypatch.chdir(tmp_path / "here")
    content, files = read_recipe(Path("../a/mine.yaml"))
    assert [file.name for file in files] == ["mine.yaml", "between.yaml", "shared.yaml"]
    assert (content["title"], content["run"]["seed"]) == ("mine", 3)
    assert "extends" not in content


def test_a_file_may_extend_a_recipe_of_the_package_by_name(tmp_path):
    for extends in ("imagenet/nlm_vit_tiny_300e", "imagenet/nlm_vit_tiny_300e.yaml"):
        mine = write(tmp_path, mine=f"extends: {extends}\nrun: {{batch_size: 64}}\n")
        before = load_recipe("imagenet/nlm_vit_tiny_300e")
        assert load_recipe(mine) == before.model_copy(update={"run": before.run.model_copy(update={"batch_size": 64})})
    assert load_recipe(write(tmp_path, mine="extends: imagenet/_deit_300e\ntitle: x\nmodel: {name: y}")).schedule.epochs == 300
    (tmp_path / "imagenet").mkdir()
    write(tmp_path / "imagenet", nlm_vit_tiny_300e=SHARED)
    mine = write(tmp_path, mine="extends: imagenet/nlm_vit_tiny_300e.yaml\n")
    assert load_recipe(mine).title == "shared", "a file comes first"


@pytest.mark.parametrize(
    ("extends", "error", "message"),
    [
        ("none.yaml", FileNotFoundError, r"got 'none.yaml'\. There is no '.*none.yaml'; `imgproc-attn recipes` lists"),
        ("imagenet/none", FileNotFoundError, "a file relative to this one, or a recipe of the package, got 'imagenet/none'"),
        ("'100%s.yaml'", FileNotFoundError, "got '100%s.yaml'"),
        ("x" * 5000, FileNotFoundError, "got 'x+\\.\\.\\.x+'"),
        (".", FileNotFoundError, "got '.'"),
        ("/etc/recipe.yaml", ValueError, r"a path relative to this file, got '/etc/recipe.yaml'\. Write it like ../base.yaml"),
        ("3", ValueError, r"the path of a recipe, as text, got 3\. Write extends: base.yaml"),
        ("null", ValueError, "the path of a recipe, as text, got None"),
        ("''", ValueError, "the path of a recipe, as text, got ''"),
        ("[shared.yaml]", ValueError, r"the path of a recipe, as text, got \['shared.yaml'\]"),
        ("{a: b}", ValueError, "the path of a recipe, as text, got {'a': 'b'}"),
        ("mine.yaml", ValueError, "extends must not form a cycle, got .*mine.yaml -> .*mine.yaml. Remove one"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_extended_is_refused_in_one_line(extends, error, message, tmp_path):
    mine = child(tmp_path, "title: mine", extends)
    with pytest.raises(error, match=message) as caught:
        load_recipe(mine)
    assert str(caught.value).startswith(f"{mine}: extends must ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_circles_are_refused(tmp_path):
    (tmp_path / "below").mkdir()
    mine = write(tmp_path, mine="extends: below/../other.yaml\n", other="extends: below/third.yaml\n")
    write(tmp_path / "below", third="extends: ../mine.yaml\n")
    with pytest.raises(ValueError, match="must not form a cycle, got .* -> .*third.yaml -> .*mine.yaml. Remove"):
        load_recipe(mine)


def test_chains_have_a_bounded_length(tmp_path):
    for i in range(MAX_FILES + 1):
        write(tmp_path, **{f"f{i}": f"extends: f{i - 1}.yaml\nrun: {{seed: {i}}}\n" if i else SHARED})
    assert load_recipe(tmp_path / f"f{MAX_FILES - 1}.yaml").run.seed == MAX_FILES - 1
    with pytest.raises(ValueError, match=f"extends must lead to at most {MAX_FILES} files, got .*f0.yaml. Merge some of them."):
        load_recipe(tmp_path / f"f{MAX_FILES}.yaml")


def test_the_result_has_a_bounded_size(tmp_path):
    """Each file is small enough, but together they are too large."""
    many = ", ".join(f"k{{}}_{i}: 1" for i in range(MAX_NODES // 8))
    for i in range(MAX_FILES):
        extends = f"extends: f{i - 1}.yaml\n" if i else ""
        write(tmp_path, **{f"f{i}": f"{extends}model: {{{many.replace('{}', str(i))}}}\n"})
    assert len(read_recipe(tmp_path / "f2.yaml")[0]["model"]) == 3 * (MAX_NODES // 8)
    rule = rf"f{MAX_FILES - 1}.yaml: a recipe and the files it extends must hold at most {MAX_NODES} values, got more\. Extend"
    with pytest.raises(ValueError, match=rule):
        read_recipe(tmp_path / f"f{MAX_FILES - 1}.yaml")


def test_aliases_that_expand_too_far_are_refused_in_extended_files_too(tmp_path):
    bomb = "a: &a {x: 1}\n" + "".join(f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi"))
    with pytest.raises(ValueError, match=rf"shared.yaml: .*at most {MAX_NODES} values"):
        load_recipe(write(tmp_path, mine="extends: shared.yaml\n", shared=bomb))


def test_mistakes_name_all_files_that_may_hold_them(tmp_path):
    mine = child(tmp_path, "optimizer: {lrr: 1.0}")
    with pytest.raises(
        ValueError, match=r"mine.yaml, which extends .*shared.yaml: optimizer.lrr: unknown key. Did you mean 'lr'"
    ):
        load_recipe(mine)
    with pytest.raises(ValueError, match="shared.yaml: a recipe must be a mapping of sections, got list"):
        load_recipe(write(tmp_path, mine="extends: shared.yaml\n", shared="- 1\n"))


def test_recipes_of_the_package_stay_in_its_folder(tmp_path, monkeypatch):
    package = tmp_path / "recipes"
    (package / "images").mkdir(parents=True)
    write(tmp_path, outside=SHARED)
    write(package, shared=SHARED)
    mine = write(
        package / "images", mine="extends: ../shared.yaml\n", out="extends: ../../outside.yaml\n", link="extends: l.yaml"
    )
    (package / "images" / "l.yaml").symlink_to(tmp_path / "outside.yaml")
    monkeypatch.setattr("imgproc_attn.recipe.inheritance.recipe_folders", lambda: [package])
    assert load_recipe(mine).title == "shared"
    for name in ("out", "link"):
        with pytest.raises(
            ValueError, match=r"extends must be a file below .*recipes, got '.*'\. Move that file there"
        ) as caught:
            load_recipe(package / "images" / f"{name}.yaml")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list_recipes())
def test_what_is_shown_is_the_recipe_in_one_file(name, tmp_path):
    shown = write(tmp_path, shown=recipe_text(name))
    assert "extends" not in read_yaml(shown.read_text(), "shown")
    assert load_recipe(shown).model_dump() == load_recipe(name).model_dump()
    assert shown.read_text().startswith(list_recipes()[name].read_text().split("\n\n")[0] + "\n\n"), "the header"


def test_what_is_shown_reads_well_and_keeps_types(tmp_path):
    text = recipe_text(child(tmp_path, "# why\nmodel: {scale: 1e-2, label: '1e-2', part: 1/4}"))
    assert text.startswith("title: shared\n\nmodel:\n  name: plain_vit_tiny\n")
    for line in ("  eps: 4/255", "  lr: 1e-3", "  scale: 1e-2", "  label: '1e-2'", "  part: 1/4", "  input_size: [1, 8, 8]"):
        assert f"{line}\n" in text
    assert load_recipe(write(tmp_path, shown=text)).model_dump() == load_recipe(tmp_path / "mine.yaml").model_dump()
    assert recipe_text(tmp_path / "shared.yaml") == SHARED, "a file that extends none is shown as it is"


def test_commands_show_and_copy_whole_recipes(tmp_path, capsys):
    name = "imagenet/elliptical_vit_tiny_300e"
    cli.main(["recipes", "--show", name])
    shown = capsys.readouterr().out
    assert shown == recipe_text(name)
    cli.main(["recipes", "--copy", name, "--to", str(tmp_path / "copy.yaml")])
    assert (tmp_path / "copy.yaml").read_text() == shown
    assert "imgproc-attn train" in capsys.readouterr().out
    for arguments, message in (
        (["--show", "quikstart"], "Did you mean 'quickstart'"),
        (["--show", str(child(tmp_path, "", "none.yaml"))], "extends must be a file relative to this one"),
        (["--show", name, "--copy", name], "not allowed with argument"),
        (["--show", name, "--to", "x.yaml"], "--to must come with --copy, got only --to x.yaml. Add --copy NAME."),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["recipes", *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_a_run_keeps_all_that_its_recipe_inherits(tmp_path):
    """A run resumes after the files that its recipe extends were removed."""
    mine = write(tmp_path, mine="extends: between.yaml\ntitle: mine\n", between="extends: quickstart\nrun: {seed: 5}\n")
    recipe = load_recipe(mine, SMALL).variant("plain", 5)
    result = quiet(recipe, tmp_path / "run")
    mine.unlink()
    (tmp_path / "between.yaml").unlink()
    for folder in (tmp_path / "run", tmp_path / "run" / "best", tmp_path / "run" / "last"):
        assert "extends" not in yaml.safe_load((folder / "recipe.yaml").read_text())
        assert load_recipe(folder) == recipe
    assert quiet(load_recipe(tmp_path / "run"), tmp_path / "run", resume=True)["test"] == result["test"]


def test_the_example_of_the_documentation(tmp_path):
    text = (Path(__file__).parents[2] / "recipes" / "README.md").read_text(encoding="utf-8")
    example = re.search(r"(?m)^    extends: .*\n(    .+\n)+", text).group().replace("\n    ", "\n").strip()
    found = load_recipe(write(tmp_path, mine=example)).model_dump()
    expected = load_recipe("imagenet/plain_vit_small_300e").model_dump()
    expected["title"], expected["schedule"]["epochs"] = "my model, 100 epochs", 100
    expected["model"] |= {"name": "nlm_vit_small"}
    del expected["model"]["drop_path_rate"]
    assert found == expected


def leaves(content, prefix=""):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "extends":
            yield f"{prefix}{key}", repr(value)


@pytest.mark.parametrize("folder", sorted({f.parent for f in packaged_files().values()}), ids=lambda folder: folder.name)
def test_files_of_a_folder_share_their_values(folder):
    """With single inheritance, a few values are in two files, such as the name of a model with two recipes.

    A null is not a value. It resets an inherited one. The section ``data`` describes the data set of a recipe, which others of
    its folder may have in common.
    """
    found = Counter(pair for file in folder.glob("*.yaml") for pair in leaves(yaml.safe_load(file.read_text())))
    found = Counter({pair: count for pair, count in found.items() if pair[1] != "None" and not pair[0].startswith("data.")})
    repeated = {pair: count for pair, count in found.items() if count > 1}
    assert sum(repeated.values()) - len(repeated) <= 6, repeated


def test_base_files_are_no_recipes_but_some_recipe_extends_each():
    bases = {name: file for name, file in packaged_files().items() if file.name.startswith("_")}
    assert bases
    assert not bases.keys() & list_recipes().keys()
    extended = {file for path in list_recipes().values() for file in map(Path.resolve, read_recipe(path)[1])}
    for file in bases.values():
        assert file.resolve() in extended, f"{file} is of no use"
        assert re.match("# Purpose: .*not to run\\s", file.read_text().replace("\n#", ""))
