"""Studies over one or several runs: compare, sweep, probe, doctor, profile, explain, check."""
