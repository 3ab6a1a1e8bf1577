"""Recipes are YAML 1.2 of a limited size. Quotes mean text, and written content is read back."""

import time

import pytest
import yaml

from imgproc_attn.cli.arguments import _option
from imgproc_attn.recipe import list_recipes, load_recipe
from imgproc_attn.recipe.loading import recipe_text
from imgproc_attn.recipe.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_NODES, free_value, read_yaml, read_yaml_file, write_yaml

# Some version of YAML reads this text as another type, or a writer may break it.
NUMBERS = "1e3 1E-3 -2e5 1.5e3 1.e5 .5 4/255 2023/10 1/0 010 0o17 0x1F 0b1 1_000 2012 -1 +1 .inf -.INF .nan 0 -0 00 08 1. 12e03"
TIMES = "1:30 12:30:45 1.5:30 2012-01-02"
WORDS = "~ null Null true False yes no on Off y N = << - ? : & * ! | > % @ ` # {} [] a:b a#b é 日本 ' \" \\"
BLANKS = ["", " ", " x ", "a: b", "a #b", "x\ny", "x\n", "\tx", "- a", "? a", "--- a", "4 / 255", "2012-01-02 10:00:00", "\x85"]
NASTY = [*NUMBERS.split(), *TIMES.split(), *WORDS.split(), *BLANKS, "\u2028"]
LETTERS = "abcdefgh"


def bomb(entry):
    """Return a YAML bomb, in which each line has several aliases of the previous line."""
    return "a: &a {x: 1}\n" + "".join(f"{c}: &{c} {entry.replace('*', '*' + p)}\n" for p, c in zip(LETTERS, "bcdefghi"))


@pytest.mark.parametrize("text", NASTY)
def test_text_comes_back_as_text(text):
    content = {"value": text, text: [text, {"deep": text}]}
    assert read_yaml(write_yaml(content), "x") == content
    assert yaml.safe_load(write_yaml({"value": text})) == {"value": text}, "and for others who read YAML 1.1"
    if "\n" not in text and "\x85" not in text and "\u2028" not in text:
        quoted = "'" + text.replace("'", "''") + "'"
        found = read_yaml(f"value: {quoted}", "x")["value"]
        assert found == text
        assert free_value(found, "value") == text, "quotes mean text where no schema knows the type, too"


@pytest.mark.parametrize("number", [0, -1, 2**70, 1e-3, 1e16, 1e-300, -0.0, 0.1, float("inf"), True, None])
def test_other_values_come_back(number):
    found = read_yaml(write_yaml([number]), "x")[0]
    assert found == number
    assert type(found) is type(number)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_comes_back_as_it_was_written(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe.model_dump()), encoding="utf-8")
    assert load_recipe(tmp_path) == recipe


@pytest.mark.parametrize("text", ["1e3", "2023/10", "4/255", "010", "1:30", "no", "on", "2012-01-02", "0x10", "1_0"])
def test_unquoted_text_is_text_where_the_schema_wants_text(text, tmp_path):
    for given in (text, f"'{text}'", f'"{text}"'):
        recipe = load_recipe("quickstart", [f"data.test_split={given}", "comparison.seeds=[0]"])
        assert recipe.data.test_split == text
        (tmp_path / "recipe.yaml").write_text(write_yaml(recipe.model_dump()))
        assert load_recipe(tmp_path).data.test_split == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.test_split=2012", "Quote text .*: '2012'"),
        ("title=true", "Quote text .*: 'true'"),
        ("data.root=1.5", "Quote text .*: '1.5'"),
        ("model.pretrained=no", "model.pretrained: .*got 'no'. Write true or false"),
        ("run.compile='true'", "Write true or false"),
        ("schedule.epochs=010", "schedule.epochs: .*valid integer.*'010'"),
        ("schedule.epochs=1:30", "schedule.epochs: .*valid integer.*'1:30'"),
        ("optimizer.lr=1:30", "optimizer.lr: .*valid number.*'1:30'"),
        ("optimizer.lr=1/0", "optimizer.lr: .*'1/0'"),
        ("optimizer.lr=1e999", "optimizer.lr: .*finite number"),
        ("model.qkv_bias=no", "qkv_bias must be unambiguous, got no without quotes. Write true, false"),
        ("model.patch_size=010", "patch_size must be unambiguous, got 010"),
        ("model.residual={name: twicing, steps: 1:30}", "residual.steps must be unambiguous, got 1:30"),
        ("comparison.variants.plain.qkv_bias=off", "plain.*qkv_bias must be unambiguous, got off"),
        ("comparison.variants.plain.pretrained=1", "plain.pretrained: .*boolean"),
        ("model.drop_path_rate=-1.0", "drop_path_rate must be at least 0 and below 1, got -1.0"),
        ("comparison.variants.plain.attn_drop_rate=2", "attn_drop_rate must be at least 0 and below 1, got 2"),
        ("augmentation.scale=[1.0,0.1]", "augmentation.scale: the smallest value must come first"),
        ("augmentation.ratio=[4/3,3/4]", "augmentation.ratio: the smallest value must come first"),
        ("augmentation.scale=[2.0,3.0]", "augmentation.scale: shares of the area must be at most 1"),
        ("augmentation.mixup=a lot", "augmentation.mixup: .*valid number.*'a lot'"),
        ("augmentation.auto_augment=rand-mfoo", "auto_augment: each part must have a number, got 'mfoo'"),
        ("augmentation.auto_augment=augmix-m3-wide", "auto_augment: each part must have a number, got 'wide'"),
        ("augmentation.auto_augment=rand-m9-", "auto_augment: each part must have a number, got ''"),
        ("run.seed=18446744073709551616", "run.seed: .*less than 4294967296"),
        ("comparison.seeds=[-1]", "comparison.seeds.0: .*greater than or equal to 0"),
        ('title="a\\0b"', "must not hold NUL or surrogate characters"),
        ('title="\\uD800"', "must not hold NUL or surrogate characters"),
        ("title=!!int '3'", "a recipe must not have tags, got tag:yaml.org,2002:int"),
        ("title=" + "9" * 5000, "title"),
    ],
)
def test_what_may_mean_something_else_is_refused_in_one_line(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe("quickstart", [override])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m9-tweights", "augmix-m5-w4-d2", "original", "v0-mstd0.5", "3a"]
)
def test_policies_of_timm(policy):
    assert load_recipe("quickstart", [f"augmentation.auto_augment={policy}"]).augmentation.auto_augment == policy


def test_numbers_without_a_schema():
    recipe = load_recipe("quickstart", ["model.drop_path_rate=1e-1", "comparison.variants.plain.drop_rate=1/4"])
    assert recipe.model.model_dump()["drop_path_rate"] == 0.1
    assert recipe.variant("plain", 0).model.model_dump()["drop_rate"] == 0.25
    assert recipe.comparison.variants["plain"] == {"name": "vit_tiny_patch16_224", "drop_rate": 0.25}
    assert _option("drop_path_rate=1e-1") == ("drop_path_rate", 0.1)
    assert _option("name='1e-1'") == ("name", "1e-1")
    with pytest.raises(ValueError, match="qkv_bias must be unambiguous, got yes without quotes"):
        _option("qkv_bias=yes")


def test_models_may_be_called_by_what_looks_like_a_number_or_a_boolean(tmp_path):
    text = recipe_text("quickstart")
    for i, name in enumerate(("on", "off", "1", "010", "null", "2012-01-02")):
        (tmp_path / f"{i}.yaml").write_text(text.replace("    plain:", f"    {name}:"))
        recipe = load_recipe(tmp_path / f"{i}.yaml")
        assert next(iter(recipe.comparison.variants)) == name
        (tmp_path / "recipe.yaml").write_text(write_yaml(recipe.model_dump()))
        assert load_recipe(tmp_path) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(f"[{', '.join('*' * 9)}]"), f"at most {MAX_NODES} values"),
        (bomb("{k1: *, k2: *, k3: *, k4: *, k5: *}"), f"at most {MAX_NODES} values"),
        (bomb(f"{{<<: [{', '.join('*' * 9)}]}}"), f"at most {MAX_NODES} values"),
        ("a: &a [*a]", f"at most {MAX_NODES} values"),
        ("a: &a {b: {c: *a}}", f"at most {MAX_NODES} values"),
        ("a: [" + "x," * 30000 + "]", f"at most {MAX_NODES} values"),
        ("a: " + "[" * 5000, f"nested at most {MAX_DEPTH} deep"),
        ("a: " + "{b: " * 100 + "1" + "}" * 100, f"nested at most {MAX_DEPTH} deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(300)), f"nested at most {MAX_DEPTH} deep"),
        ("# long\n" * MAX_BYTES, f"at most {MAX_BYTES // 1024} KiB"),
        ("a: *nothing", "undefined alias"),
        ("? [a, b]\n: 1", "unhashable key"),
        ("a: 1\n--- \nb: 2", "single document"),
        ("a: 1\n'a': 2", "a key must be given once, got 'a' twice"),
        ("a: \x01", "special characters"),
        ("a: !!timestamp x", "a recipe must not have tags"),
    ],
)
def test_what_does_not_end_or_is_no_yaml_is_refused_at_once(text, message, tmp_path):
    (tmp_path / "bomb.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(tmp_path / "bomb.yaml")
    assert time.process_time() - start < 20, "bounded work: a bomb takes hours"
    assert "bomb.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merge_keys_and_aliases_of_usual_size_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, z: 3}\nc: {<<: *a, x: 4}\nd: {<<: [*a, {w: 5}]}\n")
    found = read_yaml_file(tmp_path / "x.yaml")
    assert found["b"] == {"x": 1, "y": [1, 2], "z": 3}
    assert found["c"] == {"x": 4, "y": [1, 2]}
    assert found["d"] == {"x": 1, "y": [1, 2], "w": 5}
