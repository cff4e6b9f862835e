"""What the log is told of tasks, and how its records become events."""

from . import arrays as arrays  # after the kinds, whose short way it makes known
from . import columns as columns
from . import kinds as kinds
