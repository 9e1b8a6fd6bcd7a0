"""What all explainers that are trained have in common."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.methods.training; import it as 'saccade.methods.training'")
