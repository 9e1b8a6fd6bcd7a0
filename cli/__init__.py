"""The command line: one file per command, loaded when it is called."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.cli; import it as 'saccade.cli'")
