"""What the tests of the watch look at."""

from acemath_registry.bands import Band, Bands, Measure

M = Measure
ERRORS = Band(measure=M.ERROR_RATE, high=0.02)
SCORES = Band(measure=M.SCORE_MEAN, low=-1.0, high=3.0)
BANDS = Bands(bands=(ERRORS, SCORES), looks=3)
