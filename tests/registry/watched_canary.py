"""What the tests of a canary's watch look at."""

from acemath_registry.canary_figures import CanaryBand, CanaryBands, CanaryMeasure

M = CanaryMeasure
BANDS = CanaryBands(
    bands=(CanaryBand(measure=M.ERROR_RATE, high=0.02), CanaryBand(measure=M.AGREEMENT_MEAN, low=-0.1)), looks=3
)
