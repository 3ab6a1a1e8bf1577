"""Benchmark of speed and memory: operators compared with plain attention, models compared with timm's ViT, and more.

Method for speed: all cases run in one process, with the same work and inputs. Runs are interleaved (one of each, then again).
Results are medians with quartiles. The time of an operator includes the lift.

There is one module per section of the command.
"""

from .causal import CAUSAL_OPERATORS, benchmark_causal
from .corruptions import CORRUPTION_CASES, benchmark_corruptions
from .evaluation import EVALUATORS, benchmark_evaluation
from .filtering import FILTERS, benchmark_filtering
from .generation import LANGUAGE_MODELS, benchmark_generation
from .memory import benchmark_memory
from .models import MODELS, benchmark_models
from .operators import OPERATORS, benchmark_operators
from .tables import CORRUPTION_COLUMNS, GENERATION_COLUMNS, MEMORY_COLUMNS, NAME_COLUMNS, TIME_COLUMNS, markdown
from .timing import Case, measure, summarize, synchronizer
from .training import LOOPS, benchmark_training

__all__ = [
    "CASES",
    "CORRUPTION_COLUMNS",
    "GENERATION_COLUMNS",
    "LANGUAGE_MODELS",
    "MEMORY_COLUMNS",
    "MODELS",
    "NAME_COLUMNS",
    "TIME_COLUMNS",
    "Case",
    "benchmark_causal",
    "benchmark_corruptions",
    "benchmark_evaluation",
    "benchmark_filtering",
    "benchmark_generation",
    "benchmark_memory",
    "benchmark_models",
    "benchmark_operators",
    "benchmark_training",
    "markdown",
    "measure",
    "summarize",
    "synchronizer",
]

# Cases of the sections that are tables of cases.
CASES = {
    "operators": OPERATORS,
    "causal": CAUSAL_OPERATORS,
    "filtering": FILTERS,
    "training": LOOPS,
    "evaluation": EVALUATORS,
    "corruptions": CORRUPTION_CASES,
}
