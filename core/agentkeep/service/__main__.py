"""The command's name. It alone looks up to the composition roots: nobody imports a `__main__`."""

import sys

from agentkeep.distributed.command import main

if __name__ == "__main__":
    sys.exit(main())
