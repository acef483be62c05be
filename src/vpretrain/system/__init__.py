"""What every other wing stands on: errors for people, processes, random streams, time. Knows torch
and no other wing."""
