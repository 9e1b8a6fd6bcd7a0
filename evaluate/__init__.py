"""Is it a good explanation? Planted scenes with known evidence, and metrics."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.evaluate; import it as 'saccade.evaluate'")
