"""Every command of a contributor. ``nox -l`` lists them, ``nox -s lint tests`` runs some.

Sessions run in the environment that you have activated, where you ran ``pip install -e ".[dev]"``. The reason is that every
separate environment holds its own copy of torch. ``nox -db venv -s NAME`` creates one for this session.
Arguments after ``--`` go to the last command of a session: ``nox -s tests -- tests/core -k kernel``.
"""

import os
import re
import tarfile
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = False

ROOT = Path(__file__).parent
SITE = "docs/_build"


def prepare(session: nox.Session, *packages: str) -> None:
    """Install the package and its development tools, if the session has an environment of its own."""
    if session.virtualenv.is_sandboxed:
        session.install("-e", ".[dev]", *packages)


def floors() -> dict[str, str]:
    """Return the oldest supported version of torch, torchvision and timm, as pyproject.toml states it."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    stated = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines)
    return {name: stated[name] for name in ("torch", "torchvision", "timm")}


@nox.session
def lint(session):
    """Check code style, spelling and the order of imports (seconds)."""
    prepare(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("lint-imports")


@nox.session
def types(session):
    """Check types (a minute)."""
    prepare(session)
    session.run("mypy", *session.posargs)


@nox.session
def tests(session):
    """Run the tests: offline, minutes on 2 CPU cores."""
    prepare(session)
    session.run("pytest", *session.posargs)


@nox.session
def slow(session):
    """Run the tests of large grids and longer training."""
    prepare(session)
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def gpu(session):
    """Run the tests that need a CUDA device."""
    prepare(session)
    session.run("pytest", "-m", "gpu", *session.posargs)


@nox.session
def data(session):
    """Run the tests on real images and weights (needs IMGPROC_ATTN_DATA)."""
    prepare(session)
    if "IMGPROC_ATTN_DATA" not in os.environ:
        session.error("IMGPROC_ATTN_DATA must be set to a folder of data, got nothing. Set it, and repeat the command")
    session.run("pytest", "-m", "data", *session.posargs)


@nox.session
def contract(session):
    """Run timm's own tests on our models (downloads the sources of the installed timm once)."""
    prepare(session)
    version = session.run("python", "-c", "import timm; print(timm.__version__)", silent=True).strip()
    sources = ROOT / ".cache" / f"timm-{version}"
    if not sources.is_dir():  # the wheel of timm has no tests, its source distribution has
        download = sources.parent / "download"
        options = ["--quiet", "--no-deps", "--no-binary", "timm", "--dest", str(download)]
        session.run("python", "-m", "pip", "download", *options, f"timm=={version}")
        with tarfile.open(download / f"timm-{version}.tar.gz") as archive:
            archive.extractall(sources.parent, filter="data")
    environment = {"IMGPROC_ATTN_TIMM_TESTS": str(sources / "tests")}
    session.run("pytest", "-m", "timm_contract", "--dist", "worksteal", *session.posargs, env=environment)


@nox.session(venv_backend="venv")
def floor(session):
    """Run the tests with the oldest torch, torchvision and timm that pyproject.toml allows (makes an environment)."""
    if not session.virtualenv.is_sandboxed:
        session.error("The session floor must have its own environment, got --no-venv. Run it without this option")
    prepare(session, *(f"{name}=={version}.*" for name, version in floors().items()))
    session.run("pytest", *session.posargs)


@nox.session
def settings(session):
    """Run the tests five times: other instruction sets, seeds, threads, a busy machine (an hour or more)."""
    prepare(session)
    session.run("python", ".ci/settings", *session.posargs)


@nox.session
def coverage(session):
    """Run the tests and report which lines and branches they execute (.cache/coverage/html/index.html)."""
    prepare(session)
    reports = [f"--cov-report={kind}" for kind in ("term", "html", "xml")]
    session.run("pytest", "--cov", *reports, "--timeout=1200", *session.posargs)  # tracing makes tests slower


@nox.session
def docs(session):
    """Build the documentation site with warnings as errors (docs/_build/html)."""
    prepare(session)
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", *session.posargs, "docs", f"{SITE}/html")


@nox.session
def links(session):
    """Check the links of the documentation site (needs the network)."""
    prepare(session)
    session.run("sphinx-build", "-b", "linkcheck", "-D", "plot_gallery=0", *session.posargs, "docs", f"{SITE}/linkcheck")


@nox.session
def wheel(session):
    """Build the wheel, install it into an empty environment, and try its commands there (installs torch)."""
    prepare(session)
    session.run("python", ".ci/wheel", *session.posargs)


@nox.session
def hooks(session):
    """Run the pre-commit hooks on all files."""
    prepare(session)
    session.run("pre-commit", "run", "--all-files", *session.posargs)
