"""Learning to explain: a network trained to emit the mask (Barkan et al., ICDM 2023)."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.methods.ltx; import it as 'saccade.methods.ltx'")
