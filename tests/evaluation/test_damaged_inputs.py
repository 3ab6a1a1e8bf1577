"""Damaged or hostile files of results and models: one line with the file's name, no traceback, nothing of other files."""

import base64
import json
import re
import shutil

import pytest
import timm
from evaluated import TASK, arguments, run
from timm.models import save_for_hf

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.evaluation.results import markdown
from imgproc_attn.evaluation.session import _read_checks as kept_checks
from imgproc_attn.evaluation.specs import ModelSpec
from imgproc_attn.experiments.comparison import VariantRun as Compared
from imgproc_attn.experiments.comparison import table
from imgproc_attn.recipe import load_recipe
from imgproc_attn.utils.errors import one_line
from imgproc_attn.utils.io import slug
from imgproc_attn.utils.markdown import markdown_text

ATTACK = "--attacks fgsm --eps 10/255 --limit 12 --checks 2 --batch-size 6 --output"


@pytest.fixture(scope="module")
def attacked(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("attacked")
    run("attack", *arguments(folder), ATTACK, output)
    return output


@pytest.fixture
def copy(attacked, tmp_path):
    return shutil.copytree(attacked, tmp_path / "copy")


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("imgproc-attn: ")
    return error


def in_line(change, which=1):
    """Change a line of a log."""

    def damage(folder):
        (file,) = folder.glob("log/FGSM*")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        change(lines[which])
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return damage


def add_999(line):
    line["ids"].append(999)
    for key in ("labels", "correct", "scores"):
        line[key].append(line[key][-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (in_line(lambda line: line.pop("range")), "log/FGSM.*range is missing"),
        (in_line(lambda line: line.update(range=[0])), "log/FGSM.*damaged"),
        (in_line(lambda line: line.pop("correct")), "log/FGSM.*lines must have the same columns"),
        (in_line(lambda line: line["correct"].pop()), "log/FGSM.*correct has 5 values for 6 ids"),
        (in_line(lambda line: line.update(correct="all")), "log/FGSM.*damaged"),
        (in_line(lambda line: line.update(scores=[None] * 6)), "log/FGSM.*damaged"),
        (in_line(lambda line: line.update(ids={})), "log/FGSM.*damaged"),
        (in_line(add_999, 2), r"log/FGSM.* got unknown ids \[999\]"),
        (in_line(lambda line: line.update(protocol=[]), 0), "log/FGSM.*(damaged|another protocol)"),
        (in_line(lambda line: line.pop("protocol"), 0), "log/FGSM.*damaged"),
    ],
)
def test_damaged_logs(damage, message, folder, copy, capsys):
    damage(copy)
    assert re.search(message, error_of(capsys, "attack", *arguments(folder), ATTACK, copy))


def test_a_column_that_all_lines_lack(folder, copy, capsys):
    for which in (1, 2):
        in_line(lambda line: line.pop("correct"), which)(copy)
    error = error_of(capsys, "attack", *arguments(folder), ATTACK, copy)
    assert "Per-sample results must have 'correct', got labels, scores. Compute them again with --restart" in error


@pytest.mark.parametrize(
    "content", ["", "{}", "3", '{"key": 1}', '{"key": {}, "done": [], "images": 1, "findings": [3]}', "\x00", "[" * 9999]
)
def test_damaged_checks_are_none(content, tmp_path):
    (tmp_path / "checks.json").write_text(content)
    assert kept_checks(tmp_path / "checks.json") == {}


def test_damaged_checks_are_done_again(folder, copy):
    before = json.loads((copy / "checks.json").read_text())
    (copy / "checks.json").write_text("[]")
    run("attack", *arguments(folder), ATTACK, copy)
    assert json.loads((copy / "checks.json").read_text()) == before


def result(change):
    def damage(folder):
        content = json.loads((folder / "result.json").read_text())
        change(content)
        (folder / "result.json").write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((lambda r, key=key: r.pop(key), f"result.json .*{key}: Field required") for key in (
            "findings", "kind", "label", "conditions", "metrics", "parameters", "weights_sha256", "options", "dtype", "data",
            "preprocessing", "checked", "figures", "environment", "seed", "training_seed")),
        (lambda r: r.update(kind="x"), "result.json .*kind: Input should be 'evaluate'"),
        (lambda r: r.update(conditions=[]), "result.json .*conditions: .*at least 1"),
        (lambda r: r.update(conditions={}), "result.json .*conditions: "),
        (lambda r: r.update(metrics=["beauty"]), "result.json .*metrics.0: .*valid dictionary"),
        (lambda r: r["metrics"][0].update(key="beauty"), "result.json .*clean: beauty or its interval is missing"),
        (lambda r: r.update(findings=["bad"]), "result.json .*findings.0"),
        (lambda r: r.update(label=3), "result.json .*label: Input should be a valid string"),
        (lambda r: r.update(summary=[]), "result.json .*summary"),
        (lambda r: r.update(summary={"mean_accuracy": "high"}), "result.json .*a mean is not a number"),
        (lambda r: r["conditions"][1].pop("intervals"), "result.json .*intervals: Field required"),
        (lambda r: r["conditions"][0].pop("accuracy"), "result.json .*clean: accuracy or its interval is missing"),
        (lambda r: r["conditions"][0]["intervals"].update(accuracy=[1]), "result.json .*intervals.accuracy: .*at least 2"),
        (lambda r: r["conditions"][1].pop("norm"), "result.json .*FGSM 10/255: the settings of the attack are missing"),
        (lambda r: r["conditions"][1].update(eps=0), "result.json .*FGSM 10/255: the settings of the attack are missing"),
        (lambda r: r["conditions"][1].update(n=5), "must be of one evaluation"),
        (lambda r: r["preprocessing"].update(input_size=3), "result.json .*preprocessing.input_size"),
    ],
)  # fmt: skip
def test_damaged_results(change, message, copy, capsys):
    result(change)(copy)
    error = error_of(capsys, "report", copy, "--output", copy / "r.html")
    assert re.search(message, error), error
    assert not (copy / "r.html").exists()


def test_samples_that_are_no_table(copy, capsys):
    (copy / "per_sample.csv").write_text("image,label,clean\na,1,yes\n")
    error = error_of(capsys, "report", copy, "--output", copy / "r.html")
    assert "per_sample.csv must be a whole table of per-sample results" in error


@pytest.mark.parametrize("way", ["absolute", "above", "link", "link to a folder", "below", "no image", "gone"])
def test_a_report_holds_no_other_file_of_the_machine(way, copy, tmp_path, capsys):
    secret = tmp_path / "secret.png"
    shutil.copy(copy / "curves.png", secret)
    (copy / "sub").mkdir()
    shutil.copy(secret, copy / "sub" / "secret.png")
    (copy / "linked").symlink_to(tmp_path)
    (copy / "link.png").symlink_to(secret)
    (copy / "text.png").write_text("private")
    name = {"absolute": str(secret), "above": "../secret.png", "link": "link.png", "link to a folder": "linked/secret.png",
            "below": "sub/secret.png", "no image": "text.png", "gone": "gone.png"}[way]  # fmt: skip
    result(lambda r: r.update(figures=[name]))(copy)
    error = error_of(capsys, "report", copy, "--output", tmp_path / "r.html")
    assert re.search("must be (PNG files in its own folder|a PNG image)", error), error
    assert not (tmp_path / "r.html").exists()


def test_a_report_embeds_only_figures_of_its_own_folder(copy, tmp_path):
    (tmp_path / "alias").symlink_to(copy)  # a folder may be given by a link
    run("report", tmp_path / "alias", "--output", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert base64.b64encode((copy / "gallery.png").read_bytes()).decode() in page


NAMES = [
    "<script>alert(1)</script>",
    "a|b",
    "![x](http://example.org/x.png)",
    "[x](javascript:1)",
    "`x`",
    "**x**",
    "x\n# y",
    "\x1b[31m",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text_in_markdown(name):
    by_class = [["label", "name", "n", "top1", "top5"], [0, name, 1, 0.0, 0.0]]
    told = ["\n".join(TASK.remarks({"top5": 0.0, "top5_interval": [0, 1]}, {"per_class.csv": by_class}))]
    condition = {"name": name, "accuracy": 1.0, "intervals": {"accuracy": [0, 1]}, "n": 1, "unreadable": [name]}
    common = {"metrics": [TASK.metrics[0]._asdict()], "preprocessing": {}, "checked": {"what": "", "images": 0}}
    told.append(markdown({**common, "conditions": [condition], "findings": [{"check": "x", "message": name}]}))
    recipe = load_recipe("quickstart")
    recipe = recipe.model_copy(update={"comparison": recipe.comparison.model_copy(update={"variants": {name: {}, "b": {}}})})
    metrics = {"accuracy": {"clean": 1.0}}
    told.append(table(recipe, [Compared(label, 0, 1, 1.0, [1.0], metrics, {}, {}, []) for label in (name, "b")], "accuracy"))
    for text in told:
        assert markdown_text(name) in text
        assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(|(?<!\\)`x|(?<!\\)\*\*x|\n# y|\x1b", text), text
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in told[2].splitlines()]
    assert len(set(cells)) == 1, "a table keeps its columns"


def test_plain_names_stay_as_they_are():
    for name in (
        "bilateral + twicing",
        "vit_tiny_patch16_224",
        "PGD 4/255",
        "images in [0, 1]",
        "猫",
        "clean, perturbed images",
    ):
        assert markdown_text(name) == name


@pytest.mark.parametrize("label", ["..", ".", "...", "- ..", "../..", "/etc", ""])
def test_labels_stay_in_their_folder(label, tmp_path):
    assert (tmp_path / "runs" / slug(label) / "x").resolve().is_relative_to(tmp_path / "runs")
    assert slug(label) not in (".", "..")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("saved")
    options = {"img_size": 32, "patch_size": 8}
    save_for_hf(
        timm.create_model("test_nlm_vit", num_classes=2, **options),
        place / "best",
        model_args=options,
        safe_serialization="both",
    )
    return place


def cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


def config(content):
    return lambda place: (place / "config.json").write_text(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda place: cut(place / "model.safetensors", -100),
            "model.safetensors must be a complete checkpoint, got .*Copy it again",
        ),
        (lambda place: cut(place / "model.safetensors", 5), "model.safetensors must be a complete checkpoint"),
        (lambda place: cut(place / "model.safetensors", 0), "model.safetensors must be a complete checkpoint"),
        (
            lambda place: (place / "model.safetensors").write_bytes(b"x" * 200),
            "model.safetensors must be a complete checkpoint",
        ),
        (config("{}"), "config.json must be a JSON file .*architecture: Field required"),
        (config(""), "config.json .*empty file"),
        (config("[]"), "config.json .*valid dictionary"),
        (config('{"architecture": 3}'), "config.json .*architecture: .*valid string"),
        (config('{"architecture": "test_nlm_vit", "model_args": [1]}'), "config.json .*model_args"),
        (config('{"architecture": "test_nlm_vit", "pretrained_cfg": "x"}'), "config.json .*pretrained_cfg"),
        (config('{"architecture": "no_such_model"}'), "no_such_model"),
        (lambda place: ((place / "model.safetensors").unlink(), cut(place / "pytorch_model.bin", 900)), "."),
        (lambda place: ((place / "model.safetensors").unlink(), cut(place / "pytorch_model.bin", 0)), "."),
        (lambda place: [file.unlink() for file in place.glob("*m*del*")], "."),
    ],
)
@pytest.mark.parametrize("way", ["run", "folder", "local-dir:"])
def test_damaged_models(damage, message, way, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    damage(tmp_path / "run" / "best")
    place = {
        "run": tmp_path / "run",
        "folder": tmp_path / "run" / "best",
        "local-dir:": f"local-dir:{tmp_path / 'run' / 'best'}",
    }
    with pytest.raises((ValueError, OSError), match=message) as caught:
        ModelSpec(str(place[way])).build()
    assert str(tmp_path) in str(caught.value)


def test_what_the_system_says_gets_the_file_and_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "gone").read_text()
    assert one_line(caught.value) == f"{tmp_path / 'gone'}: No such file or directory. Check the path."
    assert one_line(OSError(24, "Too many open files")).startswith("Too many open files. Raise the limit of open files")
    assert one_line(OSError("x must be y.")) == "x must be y."
    assert one_line(MemoryError()).startswith("There is not enough memory. Lower --batch-size")
    assert one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("eps", ["-1/255", "-0.1", "-1"])
def test_radii_below_0_are_numbers_for_the_command(eps, folder, tmp_path, capsys):
    error = error_of(capsys, "attack", *arguments(folder), "--attacks", "fgsm", "--eps", eps, "--output", tmp_path / "o")
    assert "must be positive" in error


@pytest.mark.parametrize("seed", [2**32, 2**70, -1, "1e3", "x"])
def test_seeds_that_no_generator_takes(seed, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("attack", *arguments(folder), "--attacks", "fgsm", "--eps", "0.1", f"--seed={seed}", "--output", tmp_path / "o")
    assert "argument --seed" in capsys.readouterr().err
