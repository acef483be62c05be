"""Questions asked with several runs, or of one: compare, sweep, probe, doctor, profile, explain,
check."""
