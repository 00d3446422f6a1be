"""Carousel serves recurrent models. Its rooms stand beside this directory, and are named from here: `carousel.models`,
`carousel.training`, `carousel.export`, `carousel.service`, `carousel.benchmarks`.
"""

__version__ = "0.1.0"
