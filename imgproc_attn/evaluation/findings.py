"""Results of the sanity checks of a robustness number."""

from dataclasses import dataclass

__all__ = ["Finding", "SanityReport"]


@dataclass(frozen=True)
class Finding:
    """Reason to doubt a robustness number.

    Attributes:
        check: Short name of the problem.
        message: Observation, its meaning, and the remedy.
    """

    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(frozen=True)
class SanityReport:
    """Results of the sanity checks.

    Attributes:
        done: Names of the checks that ran.
        images: Number of images that were checked.
        findings: Reasons to doubt the numbers; empty if there are none.
    """

    done: list[str]
    images: int
    findings: list[Finding]
