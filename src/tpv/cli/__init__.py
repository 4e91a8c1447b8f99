"""The command line: options, targets and perturbations written as text, and the terminal."""
