"""What the log is told of tasks, and how its records become events."""

from . import columns as columns
from . import kinds as kinds
