"""Millions of images: sources of any kind, a resumable loop over shards, tables of explanations, and Ray Data."""

if not __name__.startswith("saccade."):
    raise ImportError("this folder is the package saccade.accel.batch; import it as 'saccade.accel.batch'")

from ...errors import require

require("pyarrow", extra="batch", purpose="tables of explanations")
