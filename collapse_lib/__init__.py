"""Language-model collapse, reproduced: the library behind the notebooks.

Importing this package costs nothing; every module imports what it needs, and heavy packages are imported where they are used.
"""

__version__ = "0.1.0"
