"""Public names of the core. Type checkers read this file, and `lazy_loader` loads the names on first use."""

from .attention import FilterAttention
from .bandwidths import Bandwidth
from .block import FilterBlock
from .components import LayerSpec
from .elementwise_filters import ReluFilter, ThresholdFilter
from .feature_filters import EluFeatures, RandomFeatures
from .filters import DenseFilter, Operator, SoftmaxFilter, WindowedFilter, log_weights
from .geometry import Geometry, grid_geometry, line_geometry
from .kernels import DotProduct, Elliptical, GaussianRange
from .landmark_filters import Linformer, Nystroem
from .layer_state import LayerState
from .linear_filters import Representatives, TokenStatistics
from .pointwise import ISTA
from .positions import Alibi, RelativeTable, Rotary, SinCos, SpatialGaussian, UntiedPositions
from .projections import Projection, QueryKeyValue, SharedSubspaces, TiedOutput
from .relative_buckets import RelativeBuckets
from .residuals import PID, SOS, Bregman, L2Boosting, NeuTRENO, Plain, Residual, Twicing
from .sliding_window import SlidingWindow
from .terms import DenseBias, Distance, PositionDistance, TensorBias, Terms, product

__all__ = [
    "ISTA",
    "PID",
    "SOS",
    "Alibi",
    "Bandwidth",
    "Bregman",
    "DenseBias",
    "DenseFilter",
    "Distance",
    "DotProduct",
    "Elliptical",
    "EluFeatures",
    "FilterAttention",
    "FilterBlock",
    "GaussianRange",
    "Geometry",
    "L2Boosting",
    "LayerSpec",
    "LayerState",
    "Linformer",
    "NeuTRENO",
    "Nystroem",
    "Operator",
    "Plain",
    "PositionDistance",
    "Projection",
    "QueryKeyValue",
    "RandomFeatures",
    "RelativeBuckets",
    "RelativeTable",
    "ReluFilter",
    "Representatives",
    "Residual",
    "Rotary",
    "SharedSubspaces",
    "SinCos",
    "SlidingWindow",
    "SoftmaxFilter",
    "SpatialGaussian",
    "TensorBias",
    "Terms",
    "ThresholdFilter",
    "TiedOutput",
    "TokenStatistics",
    "Twicing",
    "UntiedPositions",
    "WindowedFilter",
    "grid_geometry",
    "line_geometry",
    "log_weights",
    "product",
]
