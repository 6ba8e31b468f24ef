"""The lab: what the notebooks import, so that their cells can be short. A queue runs without it.

start ---> progress, dashboard, flow, Recorder (live) ---> gantt, depth, by_priority (after) ---> assert_clean
source, compare    show the package's own code
Experiment, offer ---> frame ---> ecdf, scaling, predict
fault              break a running queue on purpose
explore ---> trace find and draw the shortest schedule that breaks a promise
exercise, promises check what a reader wrote
"""

from dtq.lab.background import serve, steady
from dtq.lab.curves import ecdf, left_over, predict, scaling
from dtq.lab.dashboard import dashboard
from dtq.lab.exercise import EXERCISES, exercise
from dtq.lab.experiment import Experiment, RunFailed
from dtq.lab.explore import explore, time_passes
from dtq.lab.fault import fault
from dtq.lab.faulty import FaultyStore
from dtq.lab.figures import depth, gantt, show
from dtq.lab.fit import Law, fit_amdahl, fit_usl, summarise
from dtq.lab.flow import flow
from dtq.lab.grown import whole
from dtq.lab.guess import guess
from dtq.lab.hole import checked_by, hole
from dtq.lab.hygiene import assert_clean
from dtq.lab.images import make_images
from dtq.lab.kept import keep, mine, report
from dtq.lab.live import progress
from dtq.lab.load import arrivals, offer
from dtq.lab.mail import Mailbox
from dtq.lab.pools import by_priority
from dtq.lab.promises import promises
from dtq.lab.record import Recorder
from dtq.lab.setup import start
from dtq.lab.source import compare, source
from dtq.lab.trace import trace
from dtq.lab.web import url
from dtq.testing.wrapper import SkewedClock as Clock

__all__ = [
    "EXERCISES",
    "Clock",
    "Experiment",
    "FaultyStore",
    "Law",
    "Mailbox",
    "Recorder",
    "RunFailed",
    "arrivals",
    "assert_clean",
    "by_priority",
    "checked_by",
    "compare",
    "dashboard",
    "depth",
    "ecdf",
    "exercise",
    "explore",
    "fault",
    "fit_amdahl",
    "fit_usl",
    "flow",
    "gantt",
    "guess",
    "hole",
    "keep",
    "left_over",
    "make_images",
    "mine",
    "offer",
    "predict",
    "progress",
    "promises",
    "report",
    "scaling",
    "serve",
    "show",
    "source",
    "start",
    "steady",
    "summarise",
    "time_passes",
    "trace",
    "url",
    "whole",
]
