"""``python -m vpretrain.cli.torchrun``: torchrun with the exit code of the run.

torchrun itself ends with 1 and a traceback, whatever its processes ended with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vpretrain.system.errors import Fault, Stopped, UserError

MEANT = (UserError.exit_code, Stopped.exit_code, Fault.exit_code)
"""Exit codes of processes that have already reported why they ended."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs torchrun with these arguments, by default those of the command line."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(None if arguments is None else list(arguments))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code in MEANT:
            sys.exit(code)
        raise


if __name__ == "__main__":
    main()
