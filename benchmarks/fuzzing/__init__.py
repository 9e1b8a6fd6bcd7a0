"""What ``python benchmarks/fuzz.py`` throws at Saccade, target by target."""
