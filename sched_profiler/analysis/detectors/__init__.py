"""One module for each group of findings: a function takes a run and yields what it found."""
