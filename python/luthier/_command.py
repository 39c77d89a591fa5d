"""The command ``luthier``."""

import os
import signal
import sys


def main() -> int:
    """Runs the command with the arguments of this process; the exit status."""
    # It catches Ctrl-C itself, and stores what is done. What was started to ignore it still does.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from luthier import luthier_native

    name, *arguments = sys.argv
    status = luthier_native.main([os.path.basename(name), *arguments])
    sys.stdout.flush()
    return status
