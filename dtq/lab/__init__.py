"""The lab: what the notebooks import, so that their cells can be short. Nothing of it is needed to run a queue.

start ---> progress, Recorder (live, while tasks run) ---> gantt, depth, table (after) ---> assert_clean
"""

from dtq.lab.figures import depth, gantt, show
from dtq.lab.hygiene import assert_clean
from dtq.lab.images import make_images
from dtq.lab.live import progress
from dtq.lab.record import Recorder
from dtq.lab.setup import start

__all__ = ["Recorder", "assert_clean", "depth", "gantt", "make_images", "progress", "show", "start"]
