"""A benchmark of pruning criteria: networks, published criteria, and the damage that deleting a channel
does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
