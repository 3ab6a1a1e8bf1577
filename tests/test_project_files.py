"""The files around the package agree with each other."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import imgproc_attn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CALLERS = [*ROOT.glob(".github/workflows/*.yml"), *ROOT.glob("docs/releasing.md"), *ROOT.glob(".github/*.md")]


def sessions():
    """The names of nox's sessions, without nox: it is no dependency of the tests."""
    body = ast.parse((ROOT / "noxfile.py").read_text()).body
    return [item.name for item in body if isinstance(item, ast.FunctionDef) and "session" in map(marker, item.decorator_list)]


def marker(decorator):
    decorator = decorator.func if isinstance(decorator, ast.Call) else decorator
    return getattr(decorator, "attr", None)


def test_contributing_lists_every_session():
    table = re.findall(r"^\| `nox -s (\w+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(sessions())


@pytest.mark.parametrize("page", CALLERS, ids=lambda page: page.name)
def test_called_sessions_exist(page):
    called = re.findall(r"nox -s ((?:[a-z]+ ?)+)", page.read_text())
    assert set(" ".join(called).split()) <= set(sessions())


@pytest.mark.parametrize("form", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/[!c]*.yml")), ids=lambda form: form.name)
def test_issue_forms_have_fields_with_labels(form):
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= content.keys()
    names = [field["id"] for field in content["body"]]
    assert len(set(names)) == len(names)
    assert all(field["attributes"]["label"] for field in content["body"])


def test_matrix_covers_the_supported_pythons():
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    stated = [line.split()[-1] for line in PROJECT["classifiers"] if line.startswith("Programming Language :: Python :: 3.")]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == stated
    assert PROJECT["requires-python"] == f">={stated[0]}"


def test_citation_has_the_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == imgproc_attn.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]


def test_no_two_test_files_have_one_name():
    """Folders of tests are no packages, so pytest imports test files by their names alone."""
    names = sorted(file.name for file in (ROOT / "tests").rglob("*.py"))
    assert {name for name in names if names.count(name) > 1} <= {"conftest.py"}
