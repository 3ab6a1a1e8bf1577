"""What a sanity check says of a robustness number."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A reason to doubt.

    Attributes:
        check: Its short name.
        message: What was seen, what it means, what to do.
    """

    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(frozen=True)
class SanityReport:
    """What came of checking.

    Attributes:
        done: Names of what was checked.
        images: So many were looked at.
        findings: Reasons to doubt.
    """

    done: list[str]
    images: int
    findings: list[Finding]
