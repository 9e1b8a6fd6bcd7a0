"""What an explanation is: the explainee and the methods that explain it, in PyTorch."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.methods; import it as 'saccade.methods'")
