"""fssbench: the benchmark framework for few-shot semantic segmentation.

Importing this package is cheap: torch and Lightning are only imported by the modules that need them.
"""

from fssbench.version import __version__

__all__ = ["__version__"]
