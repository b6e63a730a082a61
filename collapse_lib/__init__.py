"""Language-model collapse, reproduced: the library behind the notebooks.

Importing this package costs nothing; every module imports what it needs, and heavy packages are imported where they are used.
"""

import warnings

__version__ = "0.1.0"

# Packages that we import ask for a progress widget that we do not use; their advice would stand in every executed notebook.
warnings.filterwarnings("ignore", message="IProgress not found")
