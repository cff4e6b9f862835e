"""Pictures and accounts of a log. See docs/pictures.md.

Every function takes a log of any kind: what `fetch_logs()` gives, raw events, or a list of timespans.
graphviz, matplotlib, pandas and rich are imported when they are first needed.
"""

from .chrome import ChromeTrace, chrome_trace, write_chrome_trace
from .colors import PALETTE, name_to_color
from .critical_path import CriticalPath, Step, TimeAccount, critical_path, where_time_went
from .dot import GraphPicture, logs_to_dot
from .gantt import Gantt, gantt
from .modes import modes, register, render_logs, show_logs
from .rows import PHASES, LogTable, Span, TaskRow, read_logs
from .simulate import Placement, Simulation, simulate
from .summary import Summary, summarize_logs
from .tables import logs_to_csv, logs_to_dataframe, logs_to_rows
from .units import pretty_bytes, pretty_time
from .view import LogView

__all__ = [
    "PALETTE",
    "PHASES",
    "ChromeTrace",
    "CriticalPath",
    "Gantt",
    "GraphPicture",
    "LogTable",
    "LogView",
    "Placement",
    "Simulation",
    "Span",
    "Step",
    "Summary",
    "TaskRow",
    "TimeAccount",
    "chrome_trace",
    "critical_path",
    "gantt",
    "logs_to_csv",
    "logs_to_dataframe",
    "logs_to_dot",
    "logs_to_rows",
    "modes",
    "name_to_color",
    "pretty_bytes",
    "pretty_time",
    "read_logs",
    "register",
    "render_logs",
    "show_logs",
    "simulate",
    "summarize_logs",
    "where_time_went",
    "write_chrome_trace",
]
