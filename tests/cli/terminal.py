"""Runs a command in a terminal of 80 columns, and what is left on the screen when it ends."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios

COLUMNS = 80
_DURATION = re.compile(r"(?:\d+ h )?(?:\d+ min )?[\d.]+ s(?= |;|$)|\d+ h \d+ min", re.M)
_FIGURE = re.compile(r"\d[\d.]*(?:e[+-]?\d+)?")


def record(*arguments):
    """(exit code, everything that ``fastlip`` writes to a terminal)."""
    size = struct.pack("HHHH", 24, COLUMNS, 0, 0)
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, size)
        os.execv(sys.executable, [sys.executable, "-m", "fastlip", *arguments])
    written = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # the process has closed its side
            break
        if not more:
            break
        written += more
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), written.decode()


def frames(written):
    """Every line and every state of a line that was shown, without the blanks that erase one."""
    return [
        state for line in written.replace("\r\n", "\n").split("\n") for state in line.split("\r") if state.strip()
    ]


def screen(written):
    """The lines that are left at the end, after later text has replaced what stood before it in a line."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown = ""
        for state in line.split("\r"):
            shown = state + shown[len(state) :]
        lines.append(shown.rstrip())
    return "\n".join(lines).strip("\n") + "\n"


def without_figures(text):
    """The text with # in place of figures, and single spaces: what a run on another machine prints too."""
    return " ".join(_FIGURE.sub("#", _DURATION.sub("# s", text)).split())
