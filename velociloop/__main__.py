"""``python -m velociloop``: a REPL, or an unmodified program, on velociloop's loop.

All is in ``_command``, since the program's names are going to take the place of this module's.
"""

from velociloop._command import main

if __name__ == "__main__":
    main()
